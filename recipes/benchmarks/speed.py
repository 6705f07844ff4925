"""How long each task takes, relative to the float network and to torch.ao."""

from __future__ import annotations

from collections.abc import Iterable

from recipes.benchmarks import bars
from recipes.benchmarks.machine import has_vnni
from recipes.benchmarks.report import Cell, Section
from recipes.benchmarks.tasks import Subject, Task, tasks
from recipes.benchmarks.timing import interleaved


def measure(subjects: Iterable[Subject], rounds: int, notes: Iterable[str] = ()) -> Section:
    """A row for every task of every subject."""
    rows = [row(subject, task, rounds) for subject in subjects for task in tasks(subject)]
    vnni = "has VNNI" if has_vnni() else "has no VNNI, so that the bar of converted inference does not apply"
    explained = [
        f"Medians of the ratios of {rounds} rounds in which the contestants take turns; below 1 is faster.",
        "Float is the network as it is: channels first, batch norms unfolded. "
        "The float pass beside calibration is over the same images, beside preparation over one batch.",
        f"This CPU {vnni}. That bar is for batches of {bars.CONVERTED_BATCH}.",
        "torch.ao has no simulation of a calibrated network: its simulated evaluation is of one prepared for training.",
        *notes,
    ]
    return Section("Speed", rows, explained, digits=3)


def row(subject: Subject, task: Task, rounds: int) -> dict[str, Cell]:
    """The times of one task, and what its bar says of them."""
    times = interleaved(task.contestants, rounds, f"{subject.name}: {task.title}")
    low, high = times.quartiles("edgeq", "float")
    peer = "torch.ao" in task.contestants
    bar = task.bar if task.against in task.contestants else None
    verdict = None if bar is None else "met" if bar.met(times.ratio("edgeq", task.against)) else "missed"
    return {
        "network": subject.name,
        "task": task.title,
        "float ms": times.milliseconds("float"),
        "edgeq / float": times.ratio("edgeq", "float"),
        "quartiles": f"{low:.3f} to {high:.3f}",
        "torch.ao / float": times.ratio("torch.ao", "float") if peer else None,
        "edgeq / torch.ao": times.ratio("edgeq", "torch.ao") if peer else None,
        "bar": None if bar is None else str(bar),
        "verdict": verdict,
    }
