"""What calibration keeps, without training: every preset on one network, by one protocol.

Calibrate on the first 256 training images in batches of 64. Then, on the test images: top-1; in how many of them
the class is the float network's; and the signal-to-noise ratio of the logits, 10 log10(sum f^2 / sum (f - q)^2).
With 2 % of the classes changed, chance alone moves top-1 by some 0.2 points in 5,000 images: agreement and the
ratio say more.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from tqdm import tqdm

import edgeq
from recipes.benchmarks.bars import accuracy_bars
from recipes.benchmarks.report import Cell, Section
from recipes.benchmarks.subjects import Trained
from recipes.training import accuracy


def measure(subject: Trained, presets: Iterable[str], backend: str) -> Section:
    """A row for each preset; one that the backend cannot run is named in the notes."""
    networks: dict[str, nn.Module] = {}
    notes = [
        "The bars were set on CIFAR-10's ResNet-20; on another network they are a yardstick.",
        f"Simulated, as the backend {backend!r} computes; change is in points of top-1.",
    ]
    for preset in tqdm(list(presets), desc="calibrate each preset", disable=None, leave=False):
        try:
            wrapper = edgeq.PTCFxModule(copy.deepcopy(subject.model), preset, backend)
        except edgeq.SpecError as error:
            notes.append(f"{preset} is left out: {error}")
            continue
        networks[preset] = wrapper.calibrate(subject.calibration)
    reference, *found, labels = run([subject.model, *networks.values()], subject.test)
    rows: list[dict[str, Cell]] = [{"preset": "float", "top-1 %": accuracy(reference, labels)}]
    rows += [row(preset, reference, *pair) for preset, pair in zip(networks, ((q, labels) for q in found), strict=True)]
    return Section(f"Accuracy of {subject.name}", rows, notes)


def row(preset: str, reference: Tensor, outputs: Tensor, labels: Tensor) -> dict[str, Cell]:
    """The figures of one preset beside its bars."""
    figures = {
        "top-1 %": accuracy(outputs, labels),
        "change": accuracy(outputs, labels) - accuracy(reference, labels),
        "agreement %": accuracy(outputs, reference.argmax(1)),
        "SQNR dB": signal_to_noise(reference, outputs),
    }
    bars = accuracy_bars(edgeq.load_preset(preset))
    promised = ", ".join(f"{column.split()[0]} {bar}" for column, bar in bars.items())
    missed = [column.split()[0] for column, bar in bars.items() if not bar.met(figures[column])]
    verdict = f"missed: {', '.join(missed)}" if missed else "met"
    return {"preset": preset, **figures, "bar": promised, "verdict": verdict}


def signal_to_noise(reference: Tensor, outputs: Tensor) -> float:
    """10 log10(sum f^2 / sum (f - q)^2), in decibel; infinite when both are equal."""
    noise = (reference - outputs).double().square().sum()
    return (10 * torch.log10(reference.double().square().sum() / noise)).item()


@torch.no_grad()
def run(models: list[nn.Module], test: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The logits of each model, and at the end the labels, in one pass over the images."""
    found = [
        [*(model(images) for model in models), labels]
        for images, labels in tqdm(test, desc="evaluate", disable=None, leave=False)
    ]
    return [torch.cat(pieces) for pieces in zip(*found, strict=True)]
