"""What is measured: each task for the float network, for edgeq and for torch.ao, ready to run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import edgeq
from recipes.benchmarks import bars
from recipes.benchmarks.bars import Bar
from recipes.benchmarks.machine import has_vnni
from recipes.benchmarks.timing import Run, Setup
from recipes.benchmarks.torch_ao import TorchAO

EPOCHS = 25  # of the training that a step is taken from; any number would do


@dataclass(frozen=True)
class Subject:
    """A float network in eval mode, batches (batch, channels, height, width) to calibrate it on, how it is to be
    quantized, and the peer, where there is one.
    """

    name: str
    model: nn.Module
    batches: list[Tensor]
    preset: str
    backend: str
    peer: TorchAO | None

    @property
    def batch(self) -> Tensor:
        """The batch of steps and forward passes."""
        return self.batches[0]

    def copy(self) -> nn.Module:
        """A float network of its own for each contestant."""
        return copy.deepcopy(self.model)

    def for_calibration(self) -> edgeq.PTCFxModule:
        """A copy, prepared for calibration."""
        return edgeq.PTCFxModule(self.copy(), self.preset, self.backend)

    def for_training(self) -> edgeq.QATFxModule:
        """A copy, prepared for training, in training mode."""
        return edgeq.QATFxModule(self.copy().train(), self.preset, self.backend, total_epochs=EPOCHS)


@dataclass(frozen=True)
class Task:
    """Something that a user waits for. `bar` limits edgeq's time relative to the contestant `against`."""

    title: str
    contestants: dict[str, Setup]
    bar: Bar | None
    against: str = "float"


def tasks(subject: Subject) -> Iterator[Task]:
    """Every task, one after the other, so that the networks of one are gone before the next."""
    for task in (training_step, frozen_step, calibration_pass, whole_calibration, simulated, converted):
        yield task(subject)
    yield preparation_for_training(subject)
    yield preparation_for_calibration(subject)


def training_step(subject: Subject) -> Task:
    """Forward, backward and SGD in the first epochs, in which ranges and batch-norm statistics follow the data."""
    contestants = {"float": again(step(subject.copy().train(), subject.batch))}
    contestants["edgeq"] = again(step(subject.for_training(), subject.batch))
    if subject.peer:
        contestants["torch.ao"] = again(step(subject.peer.prepare_training(subject.copy()), subject.batch))
    return Task("training step", contestants, bars.TRAINING_STEP)


def frozen_step(subject: Subject) -> Task:
    """The step of the last epochs, in which ranges and statistics are frozen. The float network's are not."""
    frozen = subject.for_training()
    step(frozen, subject.batch)()
    frozen.freeze()
    contestants = {"float": again(step(subject.copy().train(), subject.batch))}
    contestants["edgeq"] = again(step(frozen, subject.batch))
    if subject.peer:
        theirs = subject.peer.prepare_training(subject.copy())
        step(theirs, subject.batch)()
        contestants["torch.ao"] = again(step(subject.peer.freeze(theirs), subject.batch))
    return Task("training step, frozen", contestants, bars.TRAINING_STEP)


def calibration_pass(subject: Subject) -> Task:
    """All batches through a network that observes, against all batches through the float network."""
    contestants: dict[str, Setup] = {"float": again(passes(subject.model, subject.batches))}
    contestants["edgeq"] = lambda: passes(subject.for_calibration().train(), subject.batches)
    if peer := subject.peer:
        contestants["torch.ao"] = lambda: passes(peer.prepare(subject.copy()), subject.batches)
    return Task("calibration pass", contestants, bars.CALIBRATION_PASS)


def whole_calibration(subject: Subject) -> Task:
    """From the float network to the converted one, against one pass of the float network."""

    def ours() -> Run:
        model = subject.copy()

        def run() -> None:
            edgeq.PTCFxModule(model, subject.preset, subject.backend).calibrate(subject.batches).convert()

        return run

    def theirs(peer: TorchAO) -> Run:
        model = subject.copy()

        def run() -> None:
            prepared = peer.prepare(model)
            passes(prepared, subject.batches)()
            peer.convert(prepared)

        return run

    contestants: dict[str, Setup] = {"float": again(passes(subject.model, subject.batches)), "edgeq": ours}
    if peer := subject.peer:
        contestants["torch.ao"] = lambda: theirs(peer)
    return Task("prepare, calibrate, convert", contestants, bars.WHOLE_CALIBRATION)


def simulated(subject: Subject) -> Task:
    """Evaluation of the calibrated network before it is converted. torch.ao simulates only what it trains."""
    contestants = {"float": again(passes(subject.model, [subject.batch]))}
    contestants["edgeq"] = again(passes(calibrated(subject), [subject.batch]))
    if peer := subject.peer:
        theirs = peer.prepare_training(subject.copy()).eval()
        passes(theirs, [subject.batch])()
        contestants["torch.ao"] = again(passes(peer.freeze(theirs), [subject.batch]))
    return Task("simulated evaluation", contestants, bars.SIMULATED)


def converted(subject: Subject) -> Task:
    """Evaluation in integers."""
    contestants = {"float": again(passes(subject.model, [subject.batch]))}
    contestants["edgeq"] = again(passes(calibrated(subject).convert(), [subject.batch]))
    if peer := subject.peer:
        prepared = peer.prepare(subject.copy())
        passes(prepared, [subject.batch])()
        contestants["torch.ao"] = again(passes(peer.convert(prepared), [subject.batch]))
    applies = has_vnni() and len(subject.batch) == bars.CONVERTED_BATCH
    return Task("converted inference", contestants, bars.CONVERTED.get(subject.name) if applies else None)


def preparation_for_training(subject: Subject) -> Task:
    """From the float network to the trainable one; beside it one float forward of a batch."""

    def prepare(model: nn.Module) -> nn.Module:
        return edgeq.QATFxModule(model, subject.preset, subject.backend, total_epochs=EPOCHS)

    theirs = subject.peer.prepare_training if subject.peer else None
    return preparation(subject, "prepare for training", prepare, theirs, bars.PREPARE_TRAINING)


def preparation_for_calibration(subject: Subject) -> Task:
    """From the float network to the one that observes; beside it one float forward of a batch."""

    def prepare(model: nn.Module) -> nn.Module:
        return edgeq.PTCFxModule(model, subject.preset, subject.backend)

    theirs = subject.peer.prepare if subject.peer else None
    return preparation(subject, "prepare for calibration", prepare, theirs, bars.PREPARE_CALIBRATION)


Prepare = Callable[[nn.Module], nn.Module]


def preparation(subject: Subject, title: str, ours: Prepare, theirs: Prepare | None, bar: Bar) -> Task:
    """Both ways to prepare; each gets a fresh copy of the float network."""

    def setup(prepare: Prepare) -> Run:
        model = subject.copy()
        return lambda: prepare(model)

    contestants: dict[str, Setup] = {"float": again(passes(subject.model, [subject.batch]))}
    contestants["edgeq"] = lambda: setup(ours)
    if theirs:
        contestants["torch.ao"] = lambda: setup(theirs)
    return Task(title, contestants, bar, against="torch.ao")


# ---- the pieces


def calibrated(subject: Subject) -> edgeq.PTCFxModule:
    """A copy, calibrated on one batch: how long it takes afterwards does not depend on the ranges."""
    wrapper = subject.for_calibration()
    wrapper.calibrate([subject.batch])
    return wrapper


def step(model: nn.Module, images: Tensor) -> Run:
    """A training step: forward, backward, SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def run() -> None:
        outputs = model(images)
        labels = torch.arange(len(outputs)) % outputs.shape[1]
        loss = nn.functional.cross_entropy(outputs, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def passes(model: nn.Module, batches: list[Tensor]) -> Run:
    """A forward pass over every batch, without gradients."""

    @torch.no_grad()
    def run() -> None:
        for batch in batches:
            model(batch)

    return run


def again(run: Run) -> Setup:
    """The setup of what needs none: the same thing each round."""
    return lambda: run
