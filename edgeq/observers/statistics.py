"""Ranges that come of a tensor's statistics, as quantizers that learn begin with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from edgeq.observers.base import Observer, bounded, gathered
from edgeq.observers.registry import OBSERVERS
from edgeq.observers.sampling import sample

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec


class StatisticsObserver(Observer):
    """Means over the batches of two numbers that a sample of each batch has. Buffer: `statistics`, shape (2,).

    No range reaches beyond the extremes that were seen.
    """

    for_weights = True
    statistics: Tensor

    def __init__(self, spec: TensorSpec, channels: int | None = None, axis: int | None = None) -> None:
        super().__init__(spec, channels, axis)
        shape = (2,) if channels is None else (2, channels)
        self.register_buffer("statistics", torch.zeros(shape, dtype=torch.float32))

    def of(self, rows: Tensor) -> Tensor:
        """The numbers, float64, shape (2, n), of rows (n, samples) of float64."""
        raise NotImplementedError

    def span(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """The range for such numbers, before it is cut to the extremes."""
        raise NotImplementedError

    def update(self, x: Tensor, low: Tensor, high: Tensor, floor: float | None, ceiling: float | None) -> None:
        super().update(x, low, high, floor, ceiling)
        if self.axis is None:
            found = self.of(bounded(sample(x).to(torch.float64), floor, ceiling).unsqueeze(0))[:, 0]
        else:
            found = self.of(bounded(x.transpose(0, self.axis).flatten(1).to(torch.float64), floor, ceiling))
        self.statistics.lerp_(found.to(torch.float32), 1 / (self.batches + 1).to(torch.float32))

    def range(self) -> tuple[Tensor, Tensor]:
        return self._cut(self.statistics, self.low, self.high)

    @torch.no_grad()
    def measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(torch.float32)
        if self.axis is None:
            found = self.of(x.reshape(1, -1).to(torch.float64))[:, 0]
        else:
            found = self.of(x.transpose(0, self.axis).flatten(1).to(torch.float64))
        return self._cut(found.to(torch.float32), *self.extremes(x))

    def _cut(self, statistics: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        begin, end = self.span(statistics)
        return torch.maximum(begin, low), torch.minimum(end, high)

    def merge_processes(self) -> None:
        found, batches = gathered(self.statistics), gathered(self.batches)
        super().merge_processes()
        if bool(batches.any()):
            self.statistics.copy_(found[batches > 0].mean(0))


@OBSERVERS.register("deviations")
class DeviationsObserver(StatisticsObserver):
    """The mean and `count` standard deviations on either side: 3 in LSQ+ (arXiv 2004.09576) and TQT (arXiv 1903.08066),
    2.6 in DSQ (arXiv 1908.05033), of weights. Both are averaged over the batches.
    """

    bounds: ClassVar = {"count": (0.1, 100.0)}

    def __init__(
        self, spec: TensorSpec, channels: int | None = None, axis: int | None = None, *, count: float = 3.0
    ) -> None:
        super().__init__(spec, channels, axis)
        self.count = count

    def of(self, rows: Tensor) -> Tensor:
        return torch.stack([rows.mean(1), rows.std(1, correction=0)])

    def span(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = statistics
        return mean - self.count * deviation, mean + self.count * deviation


@OBSERVERS.register("mean_magnitude")
class MeanMagnitudeObserver(StatisticsObserver):
    """The range whose step is ``2 mean |x| / sqrt(greatest code)``, with which LSQ begins (arXiv 1902.08153)."""

    def of(self, rows: Tensor) -> Tensor:
        magnitude = rows.abs().mean(1)
        return torch.stack([magnitude, torch.zeros_like(magnitude)])

    def span(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        signed = self.spec.sign == "signed"
        end = 2 * statistics[0] * self.spec.codes(signed)[1] ** 0.5
        return -end, end
