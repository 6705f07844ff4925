"""The range of least squared error: clipping a little costs less than a coarser step for everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from edgeq.observers.histogram import HistogramObserver
from edgeq.observers.histogram_error import error_on
from edgeq.observers.registry import OBSERVERS
from edgeq.observers.search import SMALLEST_FRACTION, least_of_values, least_on, shrunk

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec


@OBSERVERS.register("squared_error")
class SquaredErrorObserver(HistogramObserver):
    """Searches the range whose quantization has the least squared error over the sampled values.

    `candidates` ends are tried on either side, from 0.2 of the extremes to all of them. A candidate is judged
    by the scale that it really gets, so that for power-of-two scales the search decides between a step that
    clips and one twice as coarse. `power` is that of the error: 2.4, as in BRECQ (arXiv 2102.05426), clips less.
    """

    for_weights = True
    bounds: ClassVar = {"candidates": (2, 1025), "power": (1.0, 4.0)}

    def __init__(
        self,
        spec: TensorSpec,
        channels: int | None = None,
        axis: int | None = None,
        *,
        candidates: int = 65,
        power: float = 2.0,
    ) -> None:
        super().__init__(spec, channels, axis)
        self.candidates, self.power = candidates, power

    def range(self) -> tuple[Tensor, Tensor]:
        separately = not self.spec.symmetric and bool(self.low < 0) and bool(self.high > 0)
        lows, highs = shrunk(self.low, self.high, self.candidates, separately)
        moments = error_on(self.edges(), self.bins().to(torch.float64), self.power)
        return least_on(moments, self.spec, lows, highs)

    @torch.no_grad()
    def measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The search on `x` itself rather than on a histogram: weights are small, and known exactly."""
        x = x.to(torch.float32)  # errors summed in half precision are too coarse to compare
        low, high = self.extremes(x)
        low, high = low.clamp(max=0), high.clamp(min=0)
        fractions = torch.linspace(SMALLEST_FRACTION, 1, self.candidates, dtype=torch.float32).tolist()
        return least_of_values(x, self.axis, self.spec, low, high, fractions, self.power)
