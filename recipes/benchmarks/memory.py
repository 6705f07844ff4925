"""How much memory each task needs at its peak, beside what was there before it.

PyTorch's profiler reports every allocation and release of a tensor's memory, scratch space of its kernels
included; the greatest sum of what is held is the peak. It is the same number on every run, which the resident
size of a process, with what its allocator keeps, is not.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from recipes.benchmarks.report import Cell, Section
from recipes.benchmarks.tasks import (
    Subject,
    Task,
    converted,
    frozen_step,
    simulated,
    training_step,
    whole_calibration,
)
from recipes.benchmarks.timing import Run

TASKS = (training_step, frozen_step, whole_calibration, simulated, converted)


def measure(subjects: Iterable[Subject], notes: Iterable[str] = ()) -> Section:
    """A row for every task of every subject."""
    rows = [
        row(subject, make)
        for subject in subjects
        for make in tqdm(TASKS, desc=f"{subject.name}: memory", disable=None, leave=False)
    ]
    explained = [
        "Greatest sum of the tensors that a task holds at one time, beside the float or prepared network and the data: "
        "activations, gradients, momentum, samples, and laid out weights.",
        "Calibration with float is one forward pass over the same images.",
        *notes,
    ]
    return Section("Memory", rows, explained)


def row(subject: Subject, make: Callable[[Subject], Task]) -> dict[str, Cell]:
    """The peaks of one task. It is run before, on other networks: what a process does only once, as trying what
    the CPU can do, is no part of it.
    """
    for setup in make(subject).contestants.values():
        setup()()
    task = make(subject)
    mebibytes = {name: peak(setup()) / 2**20 for name, setup in task.contestants.items()}
    peer = mebibytes.get("torch.ao")
    return {
        "network": subject.name,
        "task": task.title,
        "float MiB": mebibytes["float"],
        "edgeq MiB": mebibytes["edgeq"],
        "edgeq / float": mebibytes["edgeq"] / mebibytes["float"],
        "torch.ao / float": None if peer is None else peer / mebibytes["float"],
    }


def peak(run: Run) -> int:
    """The greatest number of bytes that `run` holds at one time, beside what was there before it. It is run twice,
    since what the first time leaves behind, as an optimizer's momentum, is there in the second.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
        run()
    sizes: dict[int, int] = {}
    held = greatest = 0
    for event in memory_events(profiler):
        address, size = event["Addr"], event["Bytes"]
        if size > 0:
            sizes[address] = size
            held += size
            greatest = max(greatest, held)
        else:
            held -= sizes.pop(address, 0)  # it may be from before
    return greatest


def memory_events(profiler: profile) -> list[dict[str, Any]]:
    """Allocations, and releases with negative "Bytes", by time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = [event for event in events if event["name"] == "[memory]"]
    return [event["args"] for event in sorted(found, key=lambda event: event["ts"])]
