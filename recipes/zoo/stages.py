"""One network through every stage: prepared, trained for a step, calibrated, converted, exported and compared."""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import edgeq

STAGES = ("build", "prepare", "train", "calibrate", "convert", "export", "parity")


@dataclass(frozen=True)
class Subject:
    """A network, and how it is used. `build` makes it, in eval mode; `inputs` the arguments of its forward for a
    batch of two, as a tuple, and `targets` what it takes besides in training. `options` go to edgeq's wrappers.
    With `parts`, those submodules are quantized, and are files of their own; what stands around them stays Python.
    `opset_version` is given where the default one lacks an operator.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    targets: Callable[[], tuple[Any, ...]] = tuple
    options: dict[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    opset_version: int | None = None
    note: str = ""


@dataclass
class Verdict:
    """How far a network came: seconds of each stage that passed, and of the one that did not what it said."""

    name: str
    family: str
    seconds: dict[str, float] = field(default_factory=dict)
    failed: str = ""
    error: str = ""
    is_clear: bool = False  # whether the error is one of edgeq's own, which says what to do
    layers: int = 0  # with quantized weights
    covered: float = 0.0  # part of the parameters that are in them
    unequal: float = 0.0  # greatest part of a tensor's integers that differ by the runtime's own computation
    note: str = ""

    @property
    def passed(self) -> bool:
        return not self.failed


class DifferenceError(Exception):
    """The file does not compute what was validated."""


def walk(subject: Subject, preset: str | None = None) -> Verdict:
    """Takes one network through all stages, and stops at the first that fails."""
    verdict = Verdict(subject.name, subject.family, note=subject.note)
    try:
        _walk(subject, preset, verdict)
    except Exception as error:
        verdict.is_clear = isinstance(error, edgeq.EdgeqError)
        verdict.error = f"{type(error).__name__}: {error}"
        if not verdict.is_clear and not isinstance(error, DifferenceError):
            verdict.error += f"\n{''.join(traceback.format_tb(error.__traceback__)[-4:])}"
        verdict.failed = next(stage for stage in STAGES if stage not in verdict.seconds)
    return verdict


def _walk(subject: Subject, preset: str | None, verdict: Verdict) -> None:
    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        verdict.seconds[name] = round(time.perf_counter() - start, 2)

    with stage("build"):
        torch.manual_seed(0)
        network, inputs = subject.build().eval(), subject.inputs()
        settle_norms(network, inputs)
    options = {"example_inputs": inputs, "submodules": subject.parts or None, **subject.options}
    with stage("prepare"):
        training = edgeq.QATFxModule(network, preset, total_epochs=1, **options)
        training.train()
    with stage("train"):
        _train(training, (*inputs, *subject.targets()))
    del training
    with stage("calibrate"):
        model = edgeq.PTCFxModule(network, preset, **options)
        model.train()
        for _ in range(2):
            model(*inputs)
        model.eval()
        _measure(model, verdict)
        if not verdict.layers:
            raise DifferenceError("No layer is quantized.")
    with stage("convert"):
        converted = model.convert()
        _same(model(*inputs), converted(*inputs), "The converted network differs from the simulated one")
    with stage("export"), tempfile.TemporaryDirectory() as folder:
        opset = {} if subject.opset_version is None else {"opset_version": subject.opset_version}
        if subject.parts:
            results = list(converted.export_parts(inputs, folder, **opset).values())
        else:
            results = [converted.export(inputs, Path(folder) / "network.onnx", **opset)]
    with stage("parity"):
        failed = [parity for result in results for parity in result.parity if not parity.passed]
        if failed:
            raise DifferenceError("\n".join(map(str, failed)))
        tensors = [tensor for result in results for parity in result.parity for tensor in parity.tensors]
        verdict.unequal = max((tensor.local_unequal / max(tensor.elements, 1) for tensor in tensors), default=0.0)


def settle_norms(network: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Gives batch norms the statistics of `inputs`, so that activations spread as a trained network's do."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain average of all batches
        norm.train()
    with torch.no_grad():
        network(*inputs)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
        norm.eval()


def _train(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    outputs = [leaf for leaf in pytree.tree_leaves(model(*inputs)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    sum(output.float().square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not gradients or not all(bool(gradient.isfinite().all()) for gradient in gradients):
        raise DifferenceError("A gradient is not finite, or there is none.")


def _measure(model: Any, verdict: Verdict) -> None:
    layers = {id(layer.weight): layer.weight.numel() for layer in model.module.quantized_layers()}
    verdict.layers = len(layers)
    verdict.covered = sum(layers.values()) / sum(parameter.numel() for parameter in model.parameters())


def _same(one: Any, other: Any, message: str) -> None:
    for first, second in zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True):
        if isinstance(first, Tensor) and not torch.equal(first, second):
            raise DifferenceError(f"{message} by up to {(first - second).abs().max():.3g}.")
