"""What each step wins back: every method of recovery by every setting, by one protocol.

Calibrate on the first 256 training images, recover from the first 1,024, without labels. Then, on the test images, the
figures of `accuracy`; beside them the time of the recovery, of the process and not of the clock.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

import edgeq
from edgeq.recovery.recover import QUICK, Step
from recipes.benchmarks.accuracy import run, signal_to_noise
from recipes.benchmarks.bars import Bar
from recipes.benchmarks.report import Cell, Section
from recipes.benchmarks.subjects import Trained
from recipes.training import accuracy


@dataclass(frozen=True)
class Setting:
    """How a network is quantized, and what the best method of the table is to keep of it."""

    title: str
    preset: Mapping[str, Any]
    bars: Mapping[str, Bar]


SETTINGS = {
    "8": Setting("8 bits", {"inherits": "DEFAULT"}, {"change": Bar(-0.3, False), "SQNR dB": Bar(32.0, False)}),
    "8P2": Setting(
        "8 bits, power-of-two scales per tensor",
        {"inherits": "WT8SYMP2_AT8SYMP2", "recovery": [], "weight": {"observer": "squared_error"}},
        {"change": Bar(-0.7, False)},
    ),
    "W4A8": Setting(
        "4-bit weights, 8-bit activations",
        {"inherits": "DEFAULT", "weight": {"bits": 4}},
        {"change": Bar(-1.0, False)},
    ),
    "W4A4": Setting("4 bits", {"inherits": "WC4_AT4", "recovery": []}, {"change": Bar(-4.0, False)}),
    "W2A4": Setting("2-bit weights, 4-bit activations", {"inherits": "WC2_AT4", "recovery": []}, {}),
}
PLAIN = "extremes"  # the method without any: ranges from the extremes, codes by rounding, biases as they are
NO_STEPS: dict[str, list[Step]] = {PLAIN: [], "calibrated": []}
IN_ORDER = {
    "in order, seconds": list(QUICK),  # what recover() runs when nothing is said
    "in order, minutes": [*QUICK[:-1], "qdrop", *QUICK[-1:]],
}


def methods() -> dict[str, list[Step]]:
    """All rows of a table: their names, and the steps that they run."""
    return {**NO_STEPS, **{step: [step] for step in edgeq.recovery_steps()}, **IN_ORDER}


def measure(
    subject: Trained, settings: Sequence[str], wanted: Mapping[str, list[Step]], backend: str, seed: int = 0
) -> Iterator[Section]:
    """A table for each setting, a row for each method of it."""
    for key in settings:
        setting = SETTINGS[key]
        networks: dict[str, nn.Module] = {}
        costs: dict[str, dict[str, Cell]] = {}
        for method, steps in tqdm(wanted.items(), desc=setting.title, disable=None, leave=False):
            networks[method], costs[method] = recovered(subject, setting, method, steps, backend, seed)
        reference, *found, labels = run([subject.model, *networks.values()], subject.test)
        rows: list[dict[str, Cell]] = [
            row(method, reference, outputs, labels) | costs[method]
            for method, outputs in zip(networks, found, strict=True)
        ]
        yield Section(f"{subject.name}: {setting.title}", rows, notes(subject, setting, rows, reference, labels, seed))


def recovered(
    subject: Trained, setting: Setting, method: str, steps: list[Step], backend: str, seed: int
) -> tuple[nn.Module, dict[str, Cell]]:
    """A network that was calibrated, and recovered by `steps`; which of them were kept, and how long they took."""
    is_plain = method == PLAIN
    preset = of_extremes(setting.preset) if is_plain else setting.preset
    model = copy.deepcopy(subject.model)
    wrapper = edgeq.PTCFxModule(model, preset, backend, bias_calibration_factor=0.0 if is_plain else 1.0)
    wrapper.calibrate(subject.calibration)
    if not steps:
        return wrapper, {"seconds": None, "undone": None}
    start = time.process_time()
    report = wrapper.recover(subject.samples, steps, seed=seed)
    undone = ", ".join(step.name for step in report.steps if not step.kept)
    return wrapper, {"seconds": time.process_time() - start, "undone": undone or None}


def of_extremes(preset: Mapping[str, Any]) -> dict[str, Any]:
    """The preset with ranges from the smallest to the greatest value."""
    tensors = {key: {**preset.get(key, {}), "observer": "minmax"} for key in ("weight", "activation")}
    return {**preset, **tensors, "recovery": []}


def row(method: str, reference: Tensor, outputs: Tensor, labels: Tensor) -> dict[str, Cell]:
    """The figures of one method."""
    return {
        "method": method,
        "top-1 %": accuracy(outputs, labels),
        "change": accuracy(outputs, labels) - accuracy(reference, labels),
        "agreement %": accuracy(outputs, reference.argmax(1)),
        "SQNR dB": signal_to_noise(reference, outputs),
    }


def notes(
    subject: Trained, setting: Setting, rows: list[dict[str, Cell]], reference: Tensor, labels: Tensor, seed: int
) -> list[str]:
    """What one must know to read a table, and what it comes to."""
    samples = sum(map(len, subject.samples))
    found = [
        f"Float: top-1 {accuracy(reference, labels):.2f} %. Recovered from {samples} images, seed {seed}.",
        f"Worth their time, cheapest first: {advice(rows)}.",
    ]
    for column, bar in setting.bars.items():
        best = max(rows, key=lambda each: _number(each[column]))
        verdict = "met" if bar.met(_number(best[column])) else "missed"
        found.append(f"{column} {bar}: {verdict}; the best is {best['method']} with {_number(best[column]):.2f}.")
    return found


def advice(rows: Sequence[Mapping[str, Cell]]) -> str:
    """The methods that no other one beats in both time and signal-to-noise ratio."""
    worth: list[str] = []
    best = float("-inf")
    for each in sorted(rows, key=lambda each: (_number(each["seconds"]), -_number(each["SQNR dB"]))):
        ratio = _number(each["SQNR dB"])
        if ratio > best:
            best = ratio
            worth.append(f"{each['method']} ({ratio:.1f} dB, {_number(each['seconds']):.0f} s)")
    return ", ".join(worth)


def _number(cell: Cell) -> float:
    return cell if isinstance(cell, float) else 0.0
