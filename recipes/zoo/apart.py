"""Networks in processes of their own: what one leaves behind, or breaks, is no other's burden."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recipes.zoo import stages, subjects

FOLDER = Path("results/zoo")  # a file for each verdict: a sweep that is stopped has not been for nothing


def walk_all(names: Sequence[str], preset: str | None, limit: float, jobs: int) -> list[stages.Verdict]:
    """The verdicts of networks, `jobs` at a time, each within `limit` seconds."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["recipes.zoo.preload"])
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        runs = pool.map(lambda name: _apart(processes, name, preset, limit), names)
        return list(tqdm(runs, total=len(names), desc="zoo", disable=None))


def _apart(processes: Any, name: str, preset: str | None, limit: float) -> stages.Verdict:
    """The verdict of one network."""
    file = FOLDER / f"{name}.json"
    file.unlink(missing_ok=True)
    process = processes.Process(target=walk_one, args=(name, preset, file))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        family = subjects.family_of(name)
        _keep(stages.Verdict(name, family, failed="time", error=f"It took more than {limit:g} seconds."), file)
    elif not file.exists():
        error = f"The process ended with status {process.exitcode}."
        _keep(stages.Verdict(name, subjects.family_of(name), failed="process", error=error), file)
    return stages.Verdict(**json.loads(file.read_text(encoding="utf-8")))


def walk_one(name: str, preset: str | None, file: Path) -> None:
    """Walks a network through the stages, in silence, and writes the verdict to `file`."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = sys.stderr = nowhere  # what libraries have to say
        _keep(stages.walk(subjects.subject(name), preset), file)


def _keep(verdict: stages.Verdict, file: Path) -> None:
    file.write_text(json.dumps(dataclasses.asdict(verdict), indent=1), encoding="utf-8")
