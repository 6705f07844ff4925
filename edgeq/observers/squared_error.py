"""The range of least squared error: clipping a little costs less than a coarser step for everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from edgeq.arithmetic import along, fake_quantize
from edgeq.observers.histogram import HistogramObserver
from edgeq.observers.registry import OBSERVERS
from edgeq.qparams import qparams_of_range

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec

SMALLEST_FRACTION = 0.2


class Moments:
    """Count, sum and sum of squares of all values below a point, of a histogram, read off in constant time."""

    def __init__(self, edges: Tensor, counts: Tensor) -> None:
        centres = (edges[:-1] + edges[1:]) / 2
        terms = torch.stack([counts, counts * centres, counts * centres.square()])
        self.cumulative = torch.nn.functional.pad(torch.cumsum(terms, 1), (1, 0))
        self.edges = edges

    def below(self, points: Tensor) -> Tensor:
        """Shape (3, *points.shape)."""
        index = torch.searchsorted(self.edges, points.contiguous()).clamp(max=len(self.edges) - 1)
        return self.cumulative[:, index]

    def error(self, low: Tensor, high: Tensor, step: Tensor) -> Tensor:
        """Summed squared error of rounding to `step` within low..high and clipping outside, for each candidate.

        Rounding costs step**2 / 12 a value; what is nearer to zero than half a step becomes zero and costs its
        own square, which matters after a ReLU, where most values are exactly zero.
        """
        total = self.below(self.edges[-1:].expand_as(low))
        at_low, at_high = self.below(low), self.below(high)
        near_zero = self.below(step / 2) - self.below(-step / 2)
        inside = (at_high - at_low)[0] - near_zero[0]
        above = total - at_high
        clipped_below = at_low[2] - 2 * low * at_low[1] + low.square() * at_low[0]
        clipped_above = above[2] - 2 * high * above[1] + high.square() * above[0]
        return inside * step.square() / 12 + near_zero[2] + clipped_below + clipped_above


@OBSERVERS.register("squared_error")
class SquaredErrorObserver(HistogramObserver):
    """Searches the range whose quantization has the least squared error over the sampled values.

    `candidates` ends are tried on either side, from 0.2 of the extremes to all of them. A candidate is judged
    by the scale that it really gets, so that for power-of-two scales the search decides between a step that
    clips and one twice as coarse.
    """

    for_weights = True
    bounds: ClassVar = {"candidates": (2, 1025)}

    def __init__(
        self,
        spec: TensorSpec,
        channels: int | None = None,
        axis: int | None = None,
        *,
        candidates: int = 65,
    ) -> None:
        super().__init__(spec, channels, axis)
        self.candidates = candidates

    def range(self) -> tuple[Tensor, Tensor]:
        low, high = self.low.clamp(max=0), self.high.clamp(min=0)
        fraction = torch.linspace(SMALLEST_FRACTION, 1, self.candidates, device=low.device)
        lows, highs = low * fraction, high * fraction
        if not self.spec.symmetric and bool(low < 0) and bool(high > 0):
            lows, highs = torch.meshgrid(lows, highs, indexing="ij")
        lows, highs = lows.reshape(-1), highs.reshape(-1)
        scale, zero_point, quant_min, quant_max = qparams_of_range(self.spec, lows, highs)
        step = scale.to(torch.float64)
        moments = Moments(self.edges(), self.bins().to(torch.float64))
        error = moments.error((quant_min - zero_point) * step, (quant_max - zero_point) * step, step)
        best = torch.argmin(error)
        return lows[best], highs[best]

    @torch.no_grad()
    def measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The search on `x` itself rather than on a histogram: weights are small, and known exactly."""
        x = x.to(torch.float32)  # errors summed in half precision are too coarse to compare
        low, high = self.extremes(x)
        low, high = low.clamp(max=0), high.clamp(min=0)
        best_low, best_high = low.clone(), high.clone()
        least = torch.full_like(low, torch.inf)
        for fraction in torch.linspace(SMALLEST_FRACTION, 1, self.candidates).tolist():
            qparams = qparams_of_range(self.spec, low * fraction, high * fraction)
            scale, zero_point, quant_min, quant_max = (along(value, self.axis, x.dim()) for value in qparams)
            kept = fake_quantize(x, scale, zero_point, quant_min, quant_max)
            error = self._summed((kept - x).square())
            better = error < least
            least = torch.where(better, error, least)
            best_low, best_high = (
                torch.where(better, low * fraction, best_low),
                torch.where(better, high * fraction, best_high),
            )
        return best_low, best_high

    def _summed(self, x: Tensor) -> Tensor:
        return x.sum() if self.axis is None else x.transpose(0, self.axis).flatten(1).sum(1)
