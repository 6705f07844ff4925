"""How a quantizer comes to its numbers, and what gradient it has, where a range that was observed is not all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from edgeq import arithmetic
from edgeq.errors import ExportError, SpecError
from edgeq.modules.float32_state import Float32State
from edgeq.qparams import QParams, code_bounds
from edgeq.quantizers.kernel import Grid
from edgeq.quantizers.step import PLAIN, Manner
from edgeq.quantizers.straight_through import scale_of_step

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec


class Scheme(Float32State):
    """A part of a `TensorQuantizer` or `WeightQuantizer`, which owns it; a preset names it as `quantizer`.

    `spec` is that of the tensor, `channels` None for one scale, else the number of scales. Options are keyword-only and
    come from the preset. A subclass has its parameters from construction on; they are never replaced, since an
    optimizer may hold them. The owner's buffers are the numbers in force, and all that evaluation and conversion read.

    `learns` is set while a network is trained; what learns starts, in place, from the range that is observed in the
    first `batches` batches of the training. Buffer: `started`, int64, how many of those there were.
    """

    for_weights: ClassVar[bool] = False
    for_activations: ClassVar[bool] = False
    is_uniform: ClassVar[bool] = True  # whether its numbers are those of integer codes and a scale
    changes_weights: ClassVar[bool] = False  # whether what is rounded is another weight, so that one has to be trained
    bounds: ClassVar[dict[str, tuple[float, float]]] = {"batches": (1, 10**6)}
    started: Tensor

    def __init__(self, spec: TensorSpec, channels: int | None = None, *, batches: int = 1) -> None:
        super().__init__()
        self.spec, self.batches, self.tensors = spec, batches, 1
        self.shape = () if channels is None else (channels,)
        self.learns = False
        self.register_buffer("started", torch.zeros((), dtype=torch.int64))
        self._left = batches

    @classmethod
    def check(cls, spec: TensorSpec) -> None:
        """Raises SpecError for a spec that the scheme cannot follow."""
        if spec.fixed_range is not None or spec.range_max is not None:
            raise SpecError(
                f"The quantizer {spec.quantizer.name!r} finds the range itself: leave out fixed_range and range_max."
            )

    def share(self, tensors: int) -> None:
        """Says that one step shows this many tensors, which have the numbers in common."""
        self.tensors = tensors
        self.read_count()

    # ---- the start

    @property
    def is_starting(self) -> bool:
        """Whether the next batch is one to start from. Reads no tensor, so a forward pass may ask."""
        return self.learns and self._left > 0

    def count(self) -> None:
        """Counts a tensor that was started from."""
        self.started.add_(1)
        self._left -= 1

    def restart(self) -> None:
        """Forgets what was learned: the next batches of a training are those to start from."""
        self.started.zero_()
        self.read_count()

    @property
    def has_started(self) -> bool:
        """Whether the parameters mean anything. Reads a buffer."""
        return bool(self.started > 0)

    def read_count(self) -> None:
        """Takes over what the buffer says, after something else has written to it."""
        self._left = max(0, self.batches * self.tensors - int(self.started))

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.read_count()

    # ---- what subclasses say

    def settled(self, qparams: QParams, low: Tensor, high: Tensor) -> QParams:
        """The numbers to put in force, given those of the range low..high that was observed."""
        return qparams

    def hold(self) -> None:
        """Puts parameters in force that are not among the owner's buffers."""

    def transform(self, weight: Tensor) -> Tensor:
        """The weight that is rounded instead of `weight`, before anything is folded into it; differentiable."""
        return weight

    @property
    def reach(self) -> Tensor | None:
        """The greatest size that the transformed weight may have, shape (), if its scale is to come of that; else None:
        of the range that is measured, or of what is learned.
        """
        return None

    def forward(self, x: Tensor, grid: Grid, manner: Manner = PLAIN) -> Tensor:
        """`x` quantized; differentiable in `x` and in what the scheme has learned. The scale broadcasts to `x`."""
        raise NotImplementedError


class LearnedScale(Scheme):
    """A scheme with a parameter that the scale comes of.

    Buffer: `unit`, the parameter's shape, what a parameter that is a size counts in. It is 1 but for weights into which
    a norm is folded: there it is what folding multiplied them with at the start, so that the parameter has the size
    of the layer's own weight and learns, beside it, as quickly. A deployed weight may be a hundred times smaller.
    """

    unit: Tensor

    def __init__(self, spec: TensorSpec, channels: int | None = None, *, batches: int = 1) -> None:
        super().__init__(spec, channels, batches=batches)
        self.register_buffer("unit", torch.ones(self.shape, dtype=torch.float32))

    @torch.no_grad()
    def start(self, low: Tensor, high: Tensor) -> None:
        """Writes into the parameters what represents low..high, each of the parameters' shape."""
        raise NotImplementedError

    def numbers(self, qparams: QParams, elements: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point, both floating, as the parameters have them; differentiable. `qparams` are those in
        force, `elements` how many numbers each scale is for.
        """
        raise NotImplementedError

    def settled(self, qparams: QParams, low: Tensor, high: Tensor) -> QParams:
        if not self.has_started:
            return qparams
        bounds = (torch.as_tensor(end, dtype=torch.int32, device=low.device) for end in code_bounds(self.spec, low))
        qparams = QParams(*qparams[:2], *bounds)
        scale, zero_point = self.numbers(qparams, 1)
        return qparams._replace(scale=scale, zero_point=zero_point.to(torch.int32))

    def widest(self, low: Tensor, high: Tensor) -> Tensor:
        """The scale at which low..high just fits; one that is to be a power of two, before it is made one."""
        is_power = self.spec.rule is not None
        return arithmetic.widest_scale(low, high, *code_bounds(self.spec, low), self.spec.symmetric, is_power)


class LearnedStep(LearnedScale):
    """A scheme whose parameter is the step, shape () or (channels,): the scale itself, in units, before a power of two
    is made of it. The zero point, where there is one, stays that of the start.

    Its gradient is multiplied by ``1 / sqrt(elements * greatest code)``, so that the step moves about as much, relative
    to its size, as the weights do (Esser et al., arXiv 1902.08153, section 2.2).
    """

    def __init__(self, spec: TensorSpec, channels: int | None = None, *, batches: int = 1) -> None:
        super().__init__(spec, channels, batches=batches)
        self.step = nn.Parameter(torch.ones(self.shape, dtype=torch.float32))

    @torch.no_grad()
    def start(self, low: Tensor, high: Tensor) -> None:
        self.step.copy_(self.widest(low, high) / self.unit)

    def numbers(self, qparams: QParams, elements: int) -> tuple[Tensor, Tensor]:
        scale = scale_of_step(self.step, self.unit, gradient_factor(qparams, elements), self.spec.rule)
        return scale, qparams.zero_point.to(torch.float32)


def gradient_factor(qparams: QParams, elements: int) -> Tensor:
    """LSQ's factor for the gradient of a step that so many elements share."""
    return torch.rsqrt(qparams.quant_max.to(torch.float32) * max(1, elements))


def require_uniform(scheme: Scheme | None, name: str) -> None:
    """Raises ExportError, naming the tensor, for a scheme whose numbers no integers stand for."""
    if scheme is not None and not scheme.is_uniform:
        raise ExportError(
            f"The quantizer {scheme.spec.quantizer.name!r} of {name!r} is not uniform: its levels are no multiples of "
            "a step, so that integer hardware cannot hold them. The network can be trained and evaluated, but neither "
            'converted nor exported; to deploy it, train with a uniform quantizer, "lsq" or "tqt", say.'
        )


def require_all_uniform(network: nn.Module) -> None:
    """Raises ExportError for a network with a scheme whose numbers no integers stand for."""
    for path, module in network.named_modules():
        if isinstance(module, Scheme):
            require_uniform(module, path.removesuffix(".scheme"))


class Learner(nn.Module):
    """Mixin for networks whose quantizers may learn."""

    def quantizer_parameters(self) -> list[nn.Parameter]:
        """What the quantizers of a preset such as ``W4A4_LSQ`` learn: steps, thresholds, offsets; empty where all are
        plain. They are among `parameters()`, but an optimizer that is older than the quantized network does not have
        them. They are best in a group of their own, without weight decay::

            optimizer.add_param_group({"params": model.quantizer_parameters(), "lr": 1e-3, "weight_decay": 0.0})

        They learn whenever the network trains, in all epochs, until ``freeze(freeze_observers=True)``.
        """
        return list(dict.fromkeys(parameter for scheme in self.schemes() for parameter in scheme.parameters()))

    def schemes(self) -> list[Scheme]:
        """What makes more of ranges than plain quantizers do, in the order of the modules."""
        return [module for module in self.modules() if isinstance(module, Scheme)]


def set_learning(network: nn.Module, learns: bool) -> None:
    """Lets all quantizers of a network learn, or stand still; and takes over how far their starts were."""
    for module in network.modules():
        if isinstance(module, Scheme):
            module.learns = learns
            module.read_count()
