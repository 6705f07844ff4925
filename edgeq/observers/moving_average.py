"""A range that follows a network while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from edgeq.observers.base import Observer
from edgeq.observers.registry import OBSERVERS
from edgeq.observers.sampling import sample

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec


@OBSERVERS.register("moving_average")
class MovingAverageObserver(Observer):
    """Exponential moving average of each batch's range: ``r += momentum * (batch's r - r)``, the first batch
    setting it.

    With `percentile` 0 a batch's range is its extremes. Else it is the extremes of a sample of 100 / percentile
    of its values: beyond the extremes of n evenly spread values there lies, on average, one value in n at each
    end, which is the percentage that is to be cut off, and no sorting is needed to find them.
    """

    for_weights = True  # a weight is there as a whole: without a percentile, its extremes
    bounds: ClassVar = {"percentile": (0.0, 49.0), "momentum": (0.0, 1.0)}

    step_low: Tensor
    step_high: Tensor

    def __init__(
        self,
        spec: TensorSpec,
        channels: int | None = None,
        axis: int | None = None,
        *,
        percentile: float = 0.0,
        momentum: float = 0.01,
    ) -> None:
        super().__init__(spec, channels, axis)
        self.percentile, self.momentum, self.tensors = percentile, momentum, 1

    def share(self, tensors: int) -> None:
        """Says that one step shows this many tensors, which have a range in common: that of all of them together is
        what is averaged, not one after the other. Buffers: `step_low` and `step_high`, the extremes in this step.
        """
        self.tensors = tensors
        self.register_buffer("step_low", torch.zeros_like(self.low))
        self.register_buffer("step_high", torch.zeros_like(self.high))

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the sample, where one is taken."""
        if self.percentile > 0 and self.axis is None:
            return torch.aminmax(sample(x, int(100 / self.percentile)))
        return super().extremes(x)

    def update(self, x: Tensor, low: Tensor, high: Tensor, floor: float | None, ceiling: float | None) -> None:
        weight = torch.where(self.batches < self.tensors, 1.0, self.momentum)
        if self.tensors > 1:
            place = self.batches % self.tensors
            low = self.step_low.copy_(torch.where(place == 0, low, torch.minimum(self.step_low, low)))
            high = self.step_high.copy_(torch.where(place == 0, high, torch.maximum(self.step_high, high)))
            in_first = self.batches < self.tensors
            weight = torch.where(in_first | (place == self.tensors - 1), weight, 0.0)
        self.low.lerp_(low, weight)
        self.high.lerp_(high, weight)

    def merge_processes(self) -> None:
        ends = self.gather_ends().mean(0)
        self.low.copy_(ends[0])
        self.high.copy_(ends[1])
