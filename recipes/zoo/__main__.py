"""python -m recipes.zoo [name ...]: takes networks through every stage and says how far each came."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recipes.zoo import apart, subjects, table

LIMIT = 900.0  # seconds


def main() -> int:
    """The command line; the exit status is 1 if a network does not pass."""
    parser = argparse.ArgumentParser(prog="python -m recipes.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="networks or families; all of them by default")
    parser.add_argument("--sample", action="store_true", help="one small network of each kind")
    parser.add_argument("--preset", help="the preset (edgeq's default one)")
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time, each in a process of its own")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that a network may take")
    parser.add_argument("--write", type=Path, help="Markdown file for the table")
    arguments = parser.parse_args()
    chosen = subjects.choose(arguments.names, arguments.sample)
    verdicts = apart.walk_all(chosen, arguments.preset, arguments.limit, arguments.jobs)
    text = table.markdown(verdicts)
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    return int(not all(verdict.passed for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
