"""python -m recipes.zoo [name ...]: takes networks through every stage and says how far each came."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from recipes.zoo import stages, subjects, table

FOLDER = Path("results/zoo")


def main() -> int:
    """The command line; the exit status is 1 if a network does not pass."""
    parser = argparse.ArgumentParser(prog="python -m recipes.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="networks or families; all of them by default")
    parser.add_argument("--sample", action="store_true", help="one small network of each kind")
    parser.add_argument("--preset", help="the preset (edgeq's default one)")
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time, each in a process of its own")
    parser.add_argument("--limit", type=float, default=900, help="seconds that a network may take")
    parser.add_argument("--write", type=Path, help="Markdown file for the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        verdict = stages.walk(subjects.subject(arguments.one), arguments.preset)
        print(json.dumps(dataclasses.asdict(verdict)))
        return 0
    chosen = subjects.choose(arguments.names, arguments.sample)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = pool.map(lambda name: _apart(name, arguments.preset, arguments.limit), chosen)
        verdicts = list(tqdm(runs, total=len(chosen), desc="zoo", disable=None))
    FOLDER.mkdir(parents=True, exist_ok=True)
    data = [dataclasses.asdict(verdict) for verdict in verdicts]
    (FOLDER / "verdicts.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    text = table.markdown(verdicts)
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    return int(not all(verdict.passed for verdict in verdicts))


def _apart(name: str, preset: str | None, limit: float) -> stages.Verdict:
    """The verdict of one network, found in a process of its own: what it leaves behind is nobody's burden."""
    command = [sys.executable, "-m", "recipes.zoo", "--one", name, *(["--preset", preset] if preset else [])]
    family = subjects.family_of(name)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return stages.Verdict(name, family, failed="time", error=f"It took more than {limit:g} seconds.")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return stages.Verdict(name, family, failed="process", error=done.stderr.strip()[-2000:])
    return stages.Verdict(**json.loads(lines[-1]))


if __name__ == "__main__":
    sys.exit(main())
