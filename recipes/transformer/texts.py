"""Labelled texts from files: a table of texts and labels, or a folder of texts a class."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from recipes.data import Images, loaders
from recipes.transformer.tokenizer import Tokenizer

TEST_NAMES = ("test", "val", "validation", "dev")
TABLES = (".csv", ".tsv")

Rows = list[tuple[str, str]]  # of text and label


def read(root: str | Path, text: str = "text", label: str = "label") -> tuple[Rows, Rows]:
    """The texts to train on and those that are held out, from `root`/train.csv (or .tsv, or the folders train/<class>/
    with a file a text) and the same for test (or val, validation, dev).

    A table has a first line with the names of its columns, of which `text` and `label` are read. Raises
    FileNotFoundError for what is missing, and ValueError for a column that a table lacks or a label that occurs only
    in the test.
    """
    root = Path(root)
    train, test = _find(root, ("train",)), _find(root, TEST_NAMES)
    rows, held_out = (_rows(part, text, label) for part in (train, test))
    unknown = sorted({name for _, name in held_out} - {name for _, name in rows})
    if unknown:
        raise ValueError(f"These labels of {str(test)!r} do not occur in {str(train)!r}: {', '.join(unknown)}.")
    return rows, held_out


def batches(
    rows: Rows, held_out: Rows, tokenizer: Tokenizer, length: int, batch: int = 64, calibration: int = 256
) -> Images:
    """Loaders of token ids (batch, length) and the numbers of their labels (batch,), both int64."""
    classes = {label: index for index, label in enumerate(sorted({label for _, label in rows}))}

    def dataset(rows: Rows) -> TensorDataset:
        ids = torch.tensor([tokenizer.encode(text, length) for text, _ in rows])
        return TensorDataset(ids, torch.tensor([classes[label] for _, label in rows]))

    train = dataset(rows)
    return loaders("texts", train, train, dataset(held_out), len(classes), batch, calibration, workers=0)


def _find(root: Path, names: tuple[str, ...]) -> Path:
    candidates = [root / f"{name}{suffix}" for name in names for suffix in (*TABLES, "")]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{str(root)!r} has none of {', '.join(candidate.name for candidate in candidates)}.")


def _rows(path: Path, text: str, label: str) -> Rows:
    found = _from_folders(path) if path.is_dir() else _from_table(path, text, label)
    if not found:
        raise ValueError(f"{str(path)!r} holds no text.")
    return found


def _from_folders(path: Path) -> Rows:
    return [(file.read_text(encoding="utf-8"), file.parent.name) for file in sorted(path.glob("*/*.txt"))]


def _from_table(path: Path, text: str, label: str) -> Rows:
    csv.field_size_limit(sys.maxsize)  # texts may be long
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".tsv":  # as GLUE's tables are: a quotation mark is a part of the text
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.DictReader(file)
        missing = [name for name in (text, label) if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{str(path)!r} has no column {missing[0]!r}, only {', '.join(reader.fieldnames or ())}.")
        rows = [(row[text], row[label]) for row in reader]
    short = next((number for number, row in enumerate(rows, 1) if None in row), None)
    if short is not None:
        raise ValueError(f"Row {short} of {str(path)!r} has too few columns.")
    return rows
