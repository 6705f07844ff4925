"""The range whose codes tell the most about the distribution: least Kullback-Leibler divergence."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from edgeq.observers.histogram import BINS, HALF, HistogramObserver
from edgeq.observers.registry import OBSERVERS
from edgeq.observers.search import shrunk
from edgeq.qparams import QParams, qparams_of_range

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec

SMOOTHING = 1e-5  # share of the values that is added to the end codes, which may be empty
BLOCK = 1 << 20  # numbers at a time


class Divergence:
    """Divergence of what codes keep of a histogram from the histogram, after S. Migacz, "8-bit inference with TensorRT"
    (GTC 2017).

    P is the histogram clipped: what lies outside counts for the end codes. Q knows how many of the values inside have
    each code, and spreads them evenly over the bins of that code that are not empty. So what is lost is the shape
    within a code, and the difference that clipping makes to the end codes.

    Unlike there, ranges have two ends and as many codes as they really have, and a code's bins are those that round
    to it. Zero is exact in every candidate, so that its bin loses nothing and a peak there, after a ReLU, spreads over
    no neighbour. Q is not scaled to a sum of one; what is missing is added (the generalised divergence), so that
    clipping everything is not free. A few values look uneven by chance: the share of that which is expected is
    taken off (Miller and Madow), or the narrowest range, with the fewest bins in it, would win.
    """

    def __init__(self, edges: Tensor, counts: Tensor) -> None:
        self.total = counts.sum().clamp(min=1e-30)
        p = counts / self.total
        self.width = edges[1] - edges[0]
        self.outside = torch.nn.functional.pad(torch.cumsum(p, 0), (1, 0))
        p = p.index_fill(0, torch.tensor(HALF, device=p.device), 0.0)
        terms = torch.stack([p, torch.xlogy(p, p), (p > 0).to(p.dtype)])
        self.cumulative = torch.nn.functional.pad(torch.cumsum(terms, 1), (1, 0))

    def of(self, qparams: QParams) -> Tensor:
        """For each candidate, shape (n,)."""
        scale, zero_point, quant_min, quant_max = qparams
        first = (quant_min - zero_point).reshape(-1, 1)
        codes = torch.arange(int((quant_max - quant_min).max()) + 2, device=scale.device)
        borders = (first + codes - 0.5) * scale.to(torch.float64).reshape(-1, 1)
        index = torch.ceil(borders / self.width + (HALF - 0.5)).clamp(0, BINS).to(torch.int64)  # by centres of bins
        held, plogp, bins = self.cumulative[:, index].diff(dim=2)
        some = held.clamp(min=1e-30)
        shape = plogp / some + torch.log(bins.clamp(min=1) / some)
        shape = (shape - (bins - 1) / (2 * some * self.total)).clamp(min=0)
        below, above = self.outside[index[:, 0]], 1 - self.outside[index[:, -1]]
        taken = held.clone()
        taken[:, 0] += below
        taken[:, -1] += above
        lost = torch.log((taken + SMOOTHING) / (held + SMOOTHING)) + torch.where(held > 0, shape, 0.0)
        return (taken * lost).sum(1) - below - above


@OBSERVERS.register("entropy")
class EntropyObserver(HistogramObserver):
    """Searches the range with the least divergence between the distribution and what its codes keep of it.

    `candidates` ends are tried on either side, from 0.2 of the extremes to all of them. The fewer values are seen, the
    nearer to the extremes the range lies; with codes as fine as the bins nothing can be told, and it is the extremes.
    """

    bounds: ClassVar = {"candidates": (2, 257)}

    def __init__(
        self,
        spec: TensorSpec,
        channels: int | None = None,
        axis: int | None = None,
        *,
        candidates: int = 33,
    ) -> None:
        super().__init__(spec, channels, axis)
        self.candidates = candidates

    def range(self) -> tuple[Tensor, Tensor]:
        if 2**self.spec.bits >= HALF or not bool(self.batches > 0):
            return self.low, self.high
        separately = not self.spec.symmetric and bool(self.low < 0) and bool(self.high > 0)
        lows, highs = shrunk(self.low, self.high, self.candidates, separately)
        divergence = Divergence(self.edges(), self.bins().to(torch.float64))
        block = max(1, BLOCK >> self.spec.bits)
        pairs = zip(lows.split(block), highs.split(block), strict=True)
        found = torch.cat([divergence.of(qparams_of_range(self.spec, *pair)) for pair in pairs])
        best = len(found) - 1 - torch.argmin(found.flip(0))  # the widest of equals, such as all that clip a constant
        return lows[best], highs[best]
