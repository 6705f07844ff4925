"""What a candidate range costs, read off a histogram in constant time."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeq.observers.histogram import BINS, HALF


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


class PowerMoments:
    """As `Moments`, for the `power`-th power of the absolute error, which no three sums give: what clipping at each
    edge of the bins costs is tabulated, and interpolated between them. Computes in widths of a bin, so that the
    same data at another power of two gives the same numbers.
    """

    def __init__(self, edges: Tensor, counts: Tensor, power: float) -> None:
        self.width, self.power = edges[1] - edges[0], power
        cost = (torch.arange(HALF, dtype=torch.float64, device=edges.device) + 0.5).pow(power)
        terms = torch.stack([counts, counts * torch.cat([cost.flip(0), cost])])
        negative, positive = counts[:HALF].flip(0), counts[HALF:]
        below = torch.nn.functional.pad(_correlated(negative, cost).flip(0), (0, HALF))
        above = torch.nn.functional.pad(_correlated(positive, cost), (HALF, 0))
        sums = torch.nn.functional.pad(torch.cumsum(terms, 1), (1, 0))
        self.table = torch.cat([sums, torch.stack([below, above])])

    def at(self, points: Tensor) -> Tensor:
        """Shape (4, *points.shape): count and summed power of all below each point, the cost of raising what lies
        below to it, if it is not positive, and of lowering what lies above, if it is not negative.
        """
        place = (points / self.width + HALF).clamp(0, BINS)
        index = place.to(torch.int64).clamp(max=BINS - 1)
        return torch.lerp(self.table[:, index], self.table[:, index + 1], (place - index).expand(4, *points.shape))

    def error(self, low: Tensor, high: Tensor, step: Tensor) -> Tensor:
        """As `Moments.error`. Rounding costs, on average, ``(step / 2) ** power / (power + 1)`` a value."""
        at_low, at_high = self.at(low), self.at(high)
        near_zero = self.at(step / 2) - self.at(-step / 2)
        inside = (at_high - at_low)[0] - near_zero[0]
        rounding = (step / self.width / 2).pow(self.power) / (self.power + 1)
        return inside * rounding + near_zero[1] + at_low[2] + at_high[3]


def _correlated(counts: Tensor, cost: Tensor) -> Tensor:
    """The sum over m of ``counts[i + m] * cost[m]``, for each i from 0 to HALF."""
    transformed = torch.fft.rfft(counts, BINS) * torch.fft.rfft(cost, BINS).conj()
    return torch.fft.irfft(transformed, BINS)[: HALF + 1].clamp(min=0)


def error_on(edges: Tensor, counts: Tensor, power: float) -> Moments | PowerMoments:
    """What judges candidates by the `power`-th power of their error."""
    return Moments(edges, counts) if power == 2 else PowerMoments(edges, counts, power)
