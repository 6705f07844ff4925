"""The distribution of a tensor in constant memory, and the range that leaves out its tails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from edgeq.observers.base import Observer, bounded
from edgeq.observers.registry import OBSERVERS
from edgeq.observers.sampling import sample

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec

BINS = 4096
HALF = BINS // 2
SMALLEST_EXPONENT = -120  # of the width of an empty histogram's bins


def exponent_for(low: Tensor, high: Tensor) -> Tensor:
    """The exponent, int32, of the narrowest bins in which the extremes `low` and `high` have a place."""
    reach = torch.nan_to_num(torch.maximum(-low, high).max(), posinf=1e30).clamp(1e-30, 1e30)
    _, needed = torch.frexp(reach / HALF)  # reach < HALF * 2**needed, strictly
    return needed.to(torch.int32)


def counted(x: Tensor, exponent: Tensor, floor: float | None, ceiling: float | None) -> Tensor:
    """How many values of a sample of `x`, within the bounds, lie in each of the bins of width 2**exponent; float32."""
    values = bounded(sample(x).to(torch.float32), floor, ceiling)
    width = torch.ldexp(torch.ones((), dtype=torch.float32, device=values.device), exponent)
    index = torch.floor(torch.nan_to_num(values) / width).clamp(-HALF, HALF - 1).to(torch.int64) + HALF
    counts = torch.zeros(BINS, dtype=torch.float32, device=values.device)
    return counts.scatter_add_(0, index, torch.ones_like(values))


def edges_of(exponent: Tensor) -> Tensor:
    """The BINS + 1 edges of the bins of width 2**exponent, float64."""
    width = torch.ldexp(torch.ones((), dtype=torch.float64, device=exponent.device), exponent)
    return torch.arange(-HALF, HALF + 1, device=exponent.device) * width


def histogram_of(
    x: Tensor, low: Tensor, high: Tensor, floor: float | None, ceiling: float | None
) -> tuple[Tensor, Tensor]:
    """Edges and counts, float64, of one batch whose extremes within the bounds are `low` and `high`."""
    exponent = exponent_for(low, high)
    return edges_of(exponent), counted(x, exponent, floor, ceiling).to(torch.float64)


class HistogramObserver(Observer):
    """Counts a sample of each batch in bins of width 2**exponent that lie around zero.

    When a value falls outside, the exponent grows and neighbouring bins merge. Widths being powers of two, a
    merge is exact: nothing is interpolated, and the result does not depend on the order of the batches. Either
    sign has 1024 to 2048 bins in use, fine enough that a range is known to a quarter of an 8-bit step.

    Buffers: `counts`, shape (BINS,), for which there is memory from the first batch, save, load or copy on: all
    histograms of a small network are more than all else that is added to it. `exponent`, shape ().
    """

    counts: Tensor
    exponent: Tensor

    def __init__(self, spec: TensorSpec, channels: int | None = None, axis: int | None = None) -> None:
        super().__init__(spec, channels, axis)
        self.register_buffer("counts", torch.zeros(0, dtype=torch.float32))
        self.register_buffer("exponent", torch.full((), SMALLEST_EXPONENT, dtype=torch.int32))

    def bins(self) -> Tensor:
        """The buffer `counts`, shape (BINS,). It stays the same tensor, since others may know it, as DDP does."""
        if self.counts.numel() == 0:
            with torch.inference_mode(False):  # so that it can be written to outside of it as well
                self.counts.data = torch.zeros(BINS, dtype=torch.float32, device=self.counts.device)
        return self.counts

    def reset(self) -> None:
        super().reset()
        self.exponent.fill_(SMALLEST_EXPONENT)

    def observe(self, x: Tensor, floor: float | None = None, ceiling: float | None = None) -> None:
        self.bins()  # for an empty batch too, which not all processes need to have
        super().observe(x, floor, ceiling)

    def update(self, x: Tensor, low: Tensor, high: Tensor, floor: float | None, ceiling: float | None) -> None:
        super().update(x, low, high, floor, ceiling)
        growth = (exponent_for(low, high) - self.exponent).clamp(min=0)
        self._widen(growth)
        self.counts.add_(counted(x, self.exponent, floor, ceiling))

    def _widen(self, growth: Tensor) -> None:
        """Merges 2**growth neighbours into one bin each; a growth of 0 leaves all in place."""
        bins = torch.arange(-HALF, HALF, device=growth.device)
        merged = (bins >> growth.clamp(max=31)) + HALF
        self.counts.copy_(torch.zeros_like(self.counts).index_add_(0, merged, self.counts))
        self.exponent.add_(growth)

    def edges(self) -> Tensor:
        """The BINS + 1 edges of the bins, float64."""
        return edges_of(self.exponent)

    def merge_processes(self) -> None:
        self.bins()
        super().merge_processes()
        exponent = self.exponent.clone()
        torch.distributed.all_reduce(exponent, torch.distributed.ReduceOp.MAX)
        self._widen(exponent - self.exponent)
        torch.distributed.all_reduce(self.counts)
        self.counts.div_(torch.distributed.get_world_size())  # the mean, so that merging again counts nothing twice

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.bins()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}counts" in state_dict:
            self.bins()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.bins()  # averages are written into the buffers of copies


@OBSERVERS.register("percentile")
class PercentileObserver(HistogramObserver):
    """The range after `percentile` per cent of the samples are cut off each end ("range shrink").

    It never reaches beyond the extremes that were seen, and with ``percentile = 0`` it is the extremes.
    """

    bounds: ClassVar = {"percentile": (0.0, 49.0)}

    def __init__(
        self,
        spec: TensorSpec,
        channels: int | None = None,
        axis: int | None = None,
        *,
        percentile: float = 0.01,
    ) -> None:
        super().__init__(spec, channels, axis)
        self.percentile = percentile

    def range(self) -> tuple[Tensor, Tensor]:
        if self.percentile == 0:
            return self.low, self.high
        edges, counts = self.edges(), self.bins().to(torch.float64)
        cut = counts.sum() * self.percentile / 100
        low = _quantile(edges, counts, cut)
        high = -_quantile(-edges.flip(0), counts.flip(0), cut)
        low, high = (end.to(torch.float32).clamp(self.low, self.high) for end in (low, high))
        return low, torch.maximum(low, high)


def _quantile(edges: Tensor, counts: Tensor, cut: Tensor) -> Tensor:
    """The point below which `cut` of the counts lie, interpolated within its bin. Ends that lay on the bins'
    grid would be multiples of each other, and sums of tensors with such scales fall on ties much too often.
    """
    below = torch.cumsum(counts, 0)
    index = torch.searchsorted(below, cut, right=True).clamp(max=BINS - 1)
    missing = cut - (below[index] - counts[index])
    return edges[index] + (edges[index + 1] - edges[index]) * missing / counts[index].clamp(min=1e-30)
