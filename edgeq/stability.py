"""What keeps the end of a training quiet: layers that stand still, weights that are kept from oscillating."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgeq import strict
from edgeq.errors import SpecError
from edgeq.modules.dampening import rounding_error
from edgeq.phase import Phase
from edgeq.registry import Registry

if TYPE_CHECKING:
    from edgeq.modules.layer import QuantizedLayer
    from edgeq.schedule import Schedule

MOMENTUM = 0.1  # of the average of how many rounding errors change their sign in a step
SHARE = 0.85  # of the layers, the least unstable ones, never stand still
NARROW = 8  # channels of an input, an image above all, that are as few as a depthwise convolution sees
LEAST = 0.04  # of a layer's errors that change their sign in a step, for it to be called unstable

FREEZES: Registry[Callable[[Stability, list[QuantizedLayer]], list[bool]]] = Registry("choice of layers to freeze")


@dataclass(frozen=True)
class StabilityOptions:
    """`freeze` names the layers that stand still, weights, batch norm and ranges, from epoch `start` on: "depthwise"
    ones, which are also those that see fewer than eight channels, or the "unstable" ones, whose rounding errors change
    their sign most often; None freezes nothing. `dampening` is how strongly weights are pulled towards their codes at
    the end of the training; it grows from zero.
    """

    freeze: str | None
    start: int
    dampening: float = strict.number(0.0, 0.0, 1e6)

    def __post_init__(self) -> None:
        strict.validate(self)
        if self.freeze is not None:
            FREEZES[self.freeze]

    @classmethod
    def for_training(
        cls, total_epochs: int, freeze: str | None, start: int | None, dampening: float
    ) -> StabilityOptions | None:
        """None where nothing is asked for. By default, layers stand still from the middle of the training on.

        Raises SpecError for a value that cannot be.
        """
        options = cls(freeze, total_epochs // 2 if start is None else start, dampening)
        if start is not None and freeze is None:
            raise SpecError("freeze_epoch says when layers stand still: say which, with freeze_layers.")
        if not options.start >= 0:
            raise SpecError(f"freeze_epoch must be at least 0, got {start!r}.")
        if options.dampening and total_epochs < 2:
            raise SpecError("dampening grows from epoch to epoch: it needs total_epochs of at least 2.")
        return options if options.freeze or options.dampening else None


class Stability(nn.Module):
    """Watches the layers of a network while it is trained.

    Buffers, so that a training resumes: `frozen`, int64, since averages are taken of buffers, shape (layers,), which
    layers stand still, for ever; `unrest`, float32, shape (layers,), how many of a layer's rounding errors change
    their sign in a step, on average; and one a layer, int8, of the shape of its weight, the signs of the step before.
    Only "unstable" needs the last two.
    """

    frozen: Tensor
    unrest: Tensor

    def __init__(self, options: StabilityOptions, layers: list[QuantizedLayer], total_epochs: int) -> None:
        super().__init__()
        self.options, self.total_epochs = options, total_epochs
        self.register_buffer("frozen", torch.zeros(len(layers), dtype=torch.int64))
        self.still = [False] * len(layers)
        self.strength = 0.0
        self.scaler: torch.amp.GradScaler | None = None  # by which the user's loss is multiplied
        self.watches = options.freeze == "unstable"
        self.signs = nn.Module()
        if self.watches:
            self.register_buffer("unrest", torch.zeros(len(layers)))
            for index, layer in enumerate(layers):
                self.signs.register_buffer(str(index), torch.zeros(layer.weight.shape, dtype=torch.int8))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "scaler": None}  # which is the loop's, and cannot always be copied

    @torch.no_grad()
    def see(self, layers: list[QuantizedLayer]) -> None:
        """Takes in one step of the training."""
        if not self.watches:
            return
        for index, layer in enumerate(layers):
            before = self.signs.get_buffer(str(index))
            signs = torch.sign(rounding_error(layer)).to(torch.int8)
            changed = (signs * before < 0).to(torch.float32).mean()
            self.unrest[index].lerp_(changed, MOMENTUM)
            before.copy_(signs)

    def pull(self, layers: list[QuantizedLayer]) -> None:
        """Sets how strongly the next backward pass pulls at each weight."""
        strength = self.strength
        if strength and self.scaler is not None:
            strength *= self.scaler.get_scale()
        for layer, frozen in zip(layers, self.still, strict=True):
            layer.dampening = 0.0 if frozen else strength

    @torch.no_grad()
    def begin(self, schedule: Schedule | None, layers: list[QuantizedLayer], has_ranges: bool) -> None:
        """Called at each change of mode, with the schedule of a training, else None: freezes what is to be frozen. What
        that is is decided where an epoch begins, and not where one is resumed. Ranges stand still, and weights are
        pulled towards codes, once `has_ranges`.
        """
        for layer in layers:
            layer.dampening = 0.0
        if schedule is None:
            return
        epoch, begins = int(schedule.epoch), bool(schedule.step == 0)
        if self.options.freeze is not None and begins and epoch >= self.options.start and not bool(self.frozen.any()):
            self.frozen.copy_(torch.tensor(FREEZES[self.options.freeze](self, layers)))
        self.still = self.frozen.to(torch.bool).tolist()
        for layer in itertools.compress(layers, self.still):
            hold(layer, has_ranges)
        part = min(1.0, epoch / max(1, self.total_epochs - 1))
        self.strength = self.options.dampening * (1 - math.cos(math.pi * part)) / 2 if has_ranges else 0.0


def hold(layer: QuantizedLayer, has_ranges: bool) -> None:
    """Lets a layer stand still while the rest is trained, and its ranges too where it has some. A gradient that is left
    of before is dropped: an optimizer with momentum would go on with it.
    """
    still = [layer, *layer.site.norms, *([] if layer.site.target is None else [layer.site.target])]
    for parameter in (parameter for module in still for parameter in module.parameters()):
        parameter.requires_grad_(False)
        parameter.grad = None
    for norm in layer.site.norms:
        norm.training = False
    if not has_ranges:
        return
    layer.phase = layer.weight_quantizer.phase = Phase.QUANTIZE
    if layer.site.target is not None:
        layer.site.target.phase = Phase.QUANTIZE


@FREEZES.register("depthwise")
def _depthwise(stability: Stability, layers: list[QuantizedLayer]) -> list[bool]:
    return [_is_narrow(layer) for layer in layers]


def _is_narrow(layer: QuantizedLayer) -> bool:
    operation = layer.operation
    if operation.function == "linear":
        return False
    channels = layer.weight.shape[operation.input_axis] * (1 if operation.transposed else operation.groups)
    return channels < NARROW or operation.groups == channels


@FREEZES.register("unstable")
def _unstable(stability: Stability, layers: list[QuantizedLayer]) -> list[bool]:
    least = max(float(torch.quantile(stability.unrest, SHARE)), LEAST)
    return (stability.unrest >= least).tolist()
