"""One call for all that wins accuracy back after a calibration: steps in order, each judged, undone if it does harm."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgeq.errors import SpecError
from edgeq.recovery import steps as _steps  # noqa: F401 - registers them
from edgeq.recovery.bank import Call
from edgeq.recovery.registry import RECOVERY_STEPS
from edgeq.recovery.samples import Samples
from edgeq.recovery.work import Work
from edgeq.spec import Method

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule

logger = logging.getLogger(__name__)

ALIKE = 0.1  # dB: how far the qualities of one network may lie apart on two machines

Step = str | tuple[str, dict[str, Any]] | Method

# What needs no learning, and so seconds: ranges first, then the codes within them, then the mean errors that are left.
QUICK: tuple[Step, ...] = (
    "equalization",
    "outlier_suppression",
    "weight_clipping",
    "compensated_rounding",
    "bias_calibration",
)


@dataclass(frozen=True)
class StepResult:
    """What one step came to: the signal-to-noise ratio of the outputs on samples held out, in dB, before and after it;
    whether it was kept; how long it took, in seconds.
    """

    name: str
    before: float
    after: float
    kept: bool
    seconds: float
    note: str = ""

    @property
    def gain(self) -> float:
        """In dB; that of a step that was undone is what it would have cost."""
        return self.after - self.before


@dataclass
class RecoveryReport:
    """The results of all steps, in order."""

    steps: list[StepResult] = field(default_factory=list)

    def __str__(self) -> str:
        lines = []
        for step in self.steps:
            verdict = "" if step.kept else ", undone"
            note = f" ({step.note})" if step.note else ""
            change = f"{step.before:.2f} -> {step.after:.2f} dB ({step.gain:+.2f}{verdict})"
            lines.append(f"{step.name}: {change}, {step.seconds:.1f} s{note}")
        return "\n".join(lines)


def recover(
    network: PreparedModule,
    calls: Iterable[Call],
    steps: Sequence[Step] = QUICK,
    seed: int = 0,
    samples: int = 1024,
    checkpoint: str | Path | None = None,
) -> RecoveryReport:
    """Runs `steps`, in order, on a calibrated network, which learns from `calls`, is changed in place, and left in
    evaluation mode.

    A step is a name, or a name with options. Each is judged by the outputs on an eighth of the samples, which it does
    not learn from, and is undone unless they come nearer to the float network's. No labels are needed. The result
    depends on `seed` and the samples alone. With `checkpoint`, a path, what is done is saved there after each unit of
    work, and a call with the same arguments goes on from it.

    Raises SpecError for an unknown step or option, or a checkpoint of another recovery; CalibrationError for a network
    without ranges, or where there are no calls.
    """
    if isinstance(steps, str):
        raise SpecError(f"steps must be a list, got {steps!r}: write [{steps!r}].")
    methods = [_method(step) for step in steps]
    if not methods:
        raise SpecError(f"steps is empty: name at least one of {', '.join(RECOVERY_STEPS)}.")
    if checkpoint is not None and not Path(checkpoint).absolute().parent.is_dir():
        raise SpecError(f"The folder of the checkpoint {checkpoint} does not exist: make it first.")
    network.require_calibration()
    network.change_mode(False)
    run = _Run(network, methods, Samples(calls, samples), seed, None if checkpoint is None else Path(checkpoint))
    return run.finished()


def _method(step: Step) -> Method:
    is_pair = isinstance(step, tuple) and len(step) == 2 and isinstance(step[1], Mapping)
    method = Method.from_data({**step[1], "name": step[0]} if is_pair else step, "steps")  # type: ignore[index,dict-item]
    method.check(RECOVERY_STEPS, "steps")
    return method


class _Run:
    """The steps of one call, and how far it has come."""

    def __init__(
        self, network: PreparedModule, methods: list[Method], samples: Samples, seed: int, checkpoint: Path | None
    ) -> None:
        self.network, self.methods, self.samples, self.checkpoint = network, methods, samples, checkpoint
        self.request = {"steps": [method.to_data() for method in methods], "seed": seed, "samples": samples.count}
        self.report = RecoveryReport()
        self.work = Work(network, samples, seed)
        self.unit = 0
        self.before: dict[str, Tensor] = {}
        self.quality = self.start = self.work.quality()

    def finished(self) -> RecoveryReport:
        """Runs what is left of the steps."""
        self._resume()
        for number in range(len(self.report.steps), len(self.methods)):
            self._step(number)
        return self.report

    def _step(self, number: int) -> None:
        method, start = self.methods[number], time.perf_counter()
        self.before = self.before or _copied(self.network)
        self.work.first_unit = self.unit
        self.work.save = None if self.checkpoint is None else partial(self._save, number)
        try:
            note = RECOVERY_STEPS[method.name](self.work, **dict(method.options))
            self.network.change_mode(False)
            after = self.work.quality()
        except BaseException:  # an interruption too leaves nothing half done
            _put_back(self.network, self.before)
            raise
        kept = after > self.quality
        if not kept:
            _put_back(self.network, self.before)
        result = StepResult(method.name, self.quality, after, kept, time.perf_counter() - start, note)
        logger.info("%s", RecoveryReport([result]))
        self.report.steps.append(result)
        self.quality = after if kept else self.quality
        self.before, self.unit = {}, 0
        self._save(number + 1, 0)

    # ---- what is kept of an interrupted run

    def _save(self, number: int, unit: int) -> None:
        if self.checkpoint is None:
            return
        state = {
            "request": self.request,
            "results": [asdict(result) for result in self.report.steps],
            "unit": unit,
            "start": self.start,
            "quality": self.quality,
            "before": self.before,
            "references": self.work.references,
            "state": self.network.state_dict(),
        }
        part = self.checkpoint.with_name(f".{self.checkpoint.name}.{os.getpid()}.part")
        torch.save(state, part)
        os.replace(part, self.checkpoint)

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if saved["request"] != self.request:
            raise SpecError(
                f"The checkpoint {self.checkpoint} is of another recovery: it has {saved['request']}, this one is "
                f"{self.request}. Name another file, or remove it."
            )
        if min(abs(self.start - saved["start"]), abs(self.start - saved["quality"])) > ALIKE:
            raise SpecError(
                f"The checkpoint {self.checkpoint} is of another network, or of other samples: it began at "
                f"{saved['start']:.2f} dB, this recovery does at {self.start:.2f} dB. Name another file, or remove it."
            )
        self.network.load_state_dict(saved["state"])
        self.report.steps = [StepResult(**result) for result in saved["results"]]
        self.unit, self.start, self.before = saved["unit"], saved["start"], saved["before"]
        self.quality = saved["quality"]
        self.work.take_references(saved["references"])


def _copied(network: PreparedModule) -> dict[str, Tensor]:
    """All tensors of a network, copied."""
    return {name: tensor.clone() for name, tensor in _tensors(network)}


@torch.no_grad()
def _put_back(network: PreparedModule, before: dict[str, Tensor]) -> None:
    """Writes tensors back in place. One that a step has added, an offset of codes, becomes zeros."""
    for name, tensor in _tensors(network):
        if name in before:
            tensor.copy_(before[name])
        else:
            tensor.zero_()
    network.apply_mode()


def _tensors(network: PreparedModule) -> list[tuple[str, Tensor]]:
    """All tensors of a network, detached. A submodule's extra state is none."""
    return [(name, value) for name, value in network.state_dict().items() if isinstance(value, Tensor)]
