"""Learning the codes of weights and the scales of activations, one unit of a network after the other, so that each
gives, behind what is quantized before it, what it gives in the float network.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgeq.graph.kinds import module_of
from edgeq.graph.ties import avoid_ties
from edgeq.modules.layer import QuantizedLayer
from edgeq.quantizers.kernel import is_dense
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.recovery.learning_unit import LearnedWeight, LearningUnit
from edgeq.recovery.samples import size_of
from edgeq.recovery.settling import Settled
from edgeq.recovery.unit_samples import UnitSample, divided, samples_of
from edgeq.recovery.units import Unit
from edgeq.recovery.work import Work
from edgeq.spec import ScaleKind

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule
    from edgeq.recovery.bank import Call

logger = logging.getLogger(__name__)

BOUNDS: dict[str, tuple[float, float]] = {  # of the options of steps that learn
    "steps": (1, 10**7),
    "batch": (1, 10**6),
    "rate": (0.0, 1e3),
    "scale_rate": (0.0, 1e3),
    "penalty": (0.0, 1e6),
    "drop": (0.0, 1.0),
}


@dataclass(frozen=True)
class Reconstruction:
    """How units learn: in so many `steps` of Adam, each on about `batch` samples.

    `learned` gives the weight of a layer a form that learns, at `rate`; None leaves the codes as they are. `penalty`
    weighs what the forms ask for beside the error, which begins at one. With a `scale_rate` the scales of the
    activations that are quantized inside of the unit learn too. Rates stay, or if they `fall` go to zero along a
    cosine, as that of the scales always does. `drop` is the probability that an element of the unit's input, or of an
    activation inside of it, is not quantized.
    `until_quantized` compares a unit's outputs as they are before they are quantized.
    """

    name: str
    units: Callable[[PreparedModule, Call], list[Unit]]
    steps: int
    batch: int
    learned: Callable[[QuantizedLayer], LearnedWeight] | None = None
    rate: float = 0.0
    falls: bool = False
    penalty: float = 0.0
    scale_rate: float = 0.0
    drop: float = 0.0
    until_quantized: bool = False

    def run(self, work: Work) -> str:
        """Reconstructs all units of the network."""
        calls = divided(work.network, work.seen, self.batch)
        draws = max(1, round(self.batch * len(calls) / sum(map(size_of, calls))))
        units = self.units(work.network, calls[0])
        for unit in work.units(units, self.name):
            generator = work.generator(self.name, unit.name)
            samples = samples_of(work.network, unit, calls, with_real=self.drop > 0)
            learner = _Learner(self, work.network, unit, samples, draws, generator)
            before, after = learner.run()
            logger.info("%s, %s: relative error %.3g -> %.3g", self.name, unit.name, before, after)
        if self.scale_rate:
            avoid_ties(work.network)
        return f"{len(units)} units"


class _Learner:
    """One unit, and what it learns from."""

    def __init__(
        self,
        options: Reconstruction,
        network: PreparedModule,
        unit: Unit,
        samples: Sequence[UnitSample],
        draws: int,
        generator: torch.Generator,
    ) -> None:
        self.options, self.network, self.unit, self.samples = options, network, unit, samples
        self.draws, self.generator = draws, generator
        self.sizes = [
            max(1e-30, sum(float(output.double().square().sum()) for output in outputs)) / len(samples)
            for outputs in zip(*(sample.outputs for sample in samples), strict=True)
        ]

    def run(self) -> tuple[float, float]:
        """Lets the unit learn, and keeps what it has learned if its error, with hard codes, falls. That error,
        relative to the squares of what it should give, before and after.
        """
        unit = LearningUnit(self.network, self.unit, self.options.until_quantized)
        before = self._error(unit)
        if before == 0.0:
            return 0.0, 0.0
        self._learn(unit, self._groups(unit), before)
        settled = Settled(unit)
        after = self._error(LearningUnit(self.network, self.unit, self.options.until_quantized))
        if not after < before:
            settled.undo()
        return before, after

    def _groups(self, unit: LearningUnit) -> list[dict[str, Any]]:
        """What learns, as an optimizer takes it."""
        options, groups = self.options, []
        if options.learned is not None:
            unit.weights.update({layer: options.learned(layer) for layer in unit.layers})
        for weight in unit.weights.values():
            for tensor, pace in weight.parameters:
                groups.append({"params": [tensor], "lr": options.rate * pace, "falls": options.falls})
        inside = _quantized_within(self.network, self.unit) if options.scale_rate else set()
        thetas = [form.learn() for quantizer, form in unit.activations.items() if quantizer in inside]
        if thetas:
            groups.append({"params": thetas, "lr": options.scale_rate, "falls": True})
        return groups

    def _learn(self, unit: LearningUnit, groups: list[dict[str, Any]], before: float) -> None:
        options = self.options
        parameters = [parameter for group in groups for parameter in group["params"]]
        if not parameters:
            return
        optimizer = torch.optim.Adam(groups)
        rates = [group["lr"] for group in groups]
        for form in unit.activations.values():
            form.stays_real = self._stays_real if options.drop else None
        for step in range(options.steps):
            progress = step / options.steps
            with torch.enable_grad():
                loss = self._loss(unit) / before
                for weight in unit.weights.values():
                    penalty = weight.penalty(progress)
                    loss = loss if penalty is None else loss + options.penalty * penalty
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * progress) if group["falls"] else 1.0)
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()

    def _loss(self, unit: LearningUnit) -> Tensor:
        """The relative error on some samples, drawn at random."""
        drawn = torch.randint(len(self.samples), (self.draws,), generator=self.generator).tolist()
        return torch.stack([self._error_of(unit, self.samples[index]) for index in drawn]).mean()

    def _error_of(self, unit: LearningUnit, sample: UnitSample) -> Tensor:
        inputs = sample.quantized
        if self.options.drop and torch.is_grad_enabled():
            inputs = pytree.tree_map(self._mixed, sample.quantized, sample.real)
        pairs = zip(unit.outputs(inputs), sample.outputs, self.sizes, strict=True)
        errors = [(found.float() - expected.float()).square().sum() / size for found, expected, size in pairs]
        return torch.stack(errors).sum()

    @torch.no_grad()
    def _error(self, unit: LearningUnit) -> float:
        """The relative error over all samples."""
        return sum(float(self._error_of(unit, sample)) for sample in self.samples) / len(self.samples)

    def _mixed(self, quantized: Any, real: Any) -> Any:
        is_floating = isinstance(quantized, Tensor) and quantized.is_floating_point()
        return torch.lerp(quantized, real, self._stays_real(quantized)) if is_floating else quantized

    def _stays_real(self, x: Tensor) -> Tensor:
        """One for the elements that are not quantized, drawn at random, else zero; laid out in memory as `x` is."""
        drawn = (random_bytes(x.numel(), self.generator) < round(256 * self.options.drop)).to(x.dtype)
        laid_out = drawn.as_strided(x.shape, x.stride()) if is_dense(x) else drawn.view(x.shape)
        return laid_out.to(x.device)


def random_bytes(count: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers 0..255, uint8, eight to each that the generator draws."""
    drawn = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return drawn.view(torch.uint8)[:count]


def _quantized_within(network: PreparedModule, unit: Unit) -> set[TensorQuantizer]:
    """The quantizers of a unit that quantize nothing outside of it, and whose scale may be any number."""
    inside: set[TensorQuantizer] = set()
    outside: set[TensorQuantizer] = set()
    for node in network.fx_graph.nodes:
        module: Any = module_of(node, network.tree)
        target = getattr(getattr(module, "site", None), "target", None)
        quantizer = module if isinstance(module, TensorQuantizer) else target
        if quantizer is not None:
            (inside if node in unit.moving else outside).add(quantizer)
    return {quantizer for quantizer in inside - outside if _is_free(quantizer)}


def _is_free(quantizer: TensorQuantizer) -> bool:
    spec = quantizer.spec
    found = quantizer.observer is not None and spec.fixed_range is None and type(quantizer) is TensorQuantizer
    return found and spec.scale is ScaleKind.FREE
