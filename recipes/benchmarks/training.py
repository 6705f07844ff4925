"""What training wins back: ways to train quantized, each beside the float network that is fine-tuned alike.

All start from the same float network and see the same images in the same order, with SGD, momentum, and a rate that
falls along a cosine. What quantizers learn is a parameter group of its own, without weight decay.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import edgeq
from edgeq.modules.norm_strategies import NORM_STRATEGIES
from edgeq.recovery.recover import Step
from recipes.benchmarks.accuracy import run
from recipes.benchmarks.report import Cell, Section
from recipes.benchmarks.subjects import Trained
from recipes.training import accuracy

FLOAT = "float"  # the way that all others are compared with
BASE = "WC4_AT4"  # the preset whose options are compared


@dataclass(frozen=True)
class Way:
    """A preset, options of `QATFxModule`, and what the network is recovered by before it is trained."""

    preset: str | Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[Step] = ()


def ways() -> dict[str, Way | None]:
    """All of them: presets of 4-bit weights, what comes after a recovery, and the options of one preset."""
    found: dict[str, Way | None] = {FLOAT: None, BASE: Way(BASE)}
    found |= {name: Way(name) for name in edgeq.preset_names() if name.startswith("W4")}
    found |= {f"{name} after qdrop": Way(name, steps=["qdrop"]) for name in (BASE, "W4A4_LSQ", "W4A4_LSQPLUS")}
    for strategy in NORM_STRATEGIES:
        found[f"batch_norm {strategy}"] = Way({"inherits": BASE, "batch_norm": strategy})
    found["freeze_layers depthwise"] = Way(BASE, {"freeze_layers": "depthwise"})
    found["freeze_layers unstable"] = Way(BASE, {"freeze_layers": "unstable"})
    found["dampening 1e-3"] = Way(BASE, {"dampening": 1e-3})
    found["distillation 1"] = Way(BASE, {"distillation": 1.0})
    return found


def measure(
    subject: Trained, wanted: Mapping[str, Way | None], backend: str, epochs: int, rate: float, seed: int = 0
) -> Section:
    """A row for each way."""
    rows: list[dict[str, Cell]] = []
    before: float | None = None
    for name, way in tqdm(wanted.items(), desc="train each way", disable=None, leave=False):
        model = prepared(subject, way, backend, epochs, seed)
        loss, seconds = fine_tuned(model, subject.training, epochs, rate, seed)
        outputs, labels = run([model], subject.test)
        top = accuracy(outputs, labels)
        rows.append({"way": name, "loss": loss, "top-1 %": top, "seconds an epoch": seconds})
        before = top if name == FLOAT else before
    for row in rows:
        top_1 = row["top-1 %"]
        assert isinstance(top_1, float)
        row["beside float"] = None if before is None else top_1 - before
    reference, labels = run([subject.model], subject.test)
    notes = [
        f"{epochs} epochs, rate {rate:g}, seed {seed}; top-1 of the float network before is "
        f"{accuracy(reference, labels):.2f} %.",
        f"Options are those of {BASE}. Seconds are of the process, on a machine with other work.",
    ]
    return Section(f"{subject.name}: trained", rows, notes)


def prepared(subject: Trained, way: Way | None, backend: str, epochs: int, seed: int) -> nn.Module:
    """A copy of the network, ready to be trained."""
    model = copy.deepcopy(subject.model).train()
    if way is None:
        return model
    total = epochs + bool(way.steps)  # a calibration is an epoch of its own
    wrapper = edgeq.QATFxModule(model, way.preset, backend, total_epochs=total, **way.options)
    if way.steps:
        wrapper.calibrate(subject.calibration, epochs=1)
        wrapper.recover(subject.samples, way.steps, seed=seed)
    return wrapper


def fine_tuned(model: nn.Module, loader: DataLoader, epochs: int, rate: float, seed: int) -> tuple[float, float]:
    """Trains, and ends in evaluation; the mean loss of the last epoch, and processor seconds an epoch."""
    torch.manual_seed(seed)  # of the order of the images, and of how they are augmented
    learned = model.quantizer_parameters() if isinstance(model, edgeq.QATFxModule) else []
    others = [parameter for parameter in model.parameters() if all(parameter is not each for each in learned)]
    groups = [{"params": others}, {"params": learned, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    loss, start = math.nan, time.process_time()
    for epoch in range(epochs):
        model.train()
        losses = []
        for images, labels in tqdm(loader, desc=f"epoch {epoch + 1} of {epochs}", disable=None, leave=False):
            outcome = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            outcome.backward()
            optimizer.step()
            schedule.step()
            losses.append(outcome.item())
        loss = sum(losses) / len(losses)
    model.eval()
    return loss, (time.process_time() - start) / epochs
