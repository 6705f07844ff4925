"""One table a measurement, printed, and written as Markdown for readers and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Cell = str | float | None


@dataclass(frozen=True)
class Section:
    """A table, and what one must know to read it. The rows' keys are the columns; `digits` is of every number."""

    title: str
    rows: list[dict[str, Cell]]
    notes: list[str]
    digits: int = 2

    def __str__(self) -> str:
        notes = "\n".join(f"- {note}" for note in self.notes)
        return f"## {self.title}\n\n{self.table()}\n\n{notes}\n"

    def table(self) -> str:
        """The rows in Markdown, columns aligned."""
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        lines = [columns, *([self._text(row.get(column)) for column in columns] for row in self.rows)]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        texts = ["| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in lines]
        texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join(texts)

    def _text(self, cell: Cell) -> str:
        if cell is None:
            return ""
        return cell if isinstance(cell, str) else f"{cell:.{self.digits}f}"


def write(folder: Path, environment: dict[str, str], sections: Sequence[Section]) -> None:
    """Writes benchmarks.md and benchmarks.json into `folder`, over those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    measured_on = ", ".join(f"{key} {value}" for key, value in environment.items())
    text = "\n".join(["# Benchmarks\n", f"{measured_on}\n", *map(str, sections)])
    (folder / "benchmarks.md").write_text(text, encoding="utf-8")
    data = {"environment": environment, "sections": {section.title: section.rows for section in sections}}
    (folder / "benchmarks.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
