"""The power of two with which each batch is kept best, and what the batches agree on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from edgeq.arithmetic import LARGEST_SCALE, SMALLEST_SCALE, PowerOfTwoRule
from edgeq.errors import SpecError
from edgeq.observers.base import Observer
from edgeq.observers.histogram import histogram_of
from edgeq.observers.histogram_error import error_on
from edgeq.observers.registry import OBSERVERS
from edgeq.observers.search import least_of_values, least_on
from edgeq.qparams import limit_range, qparams_of_range

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec

LEAST, GREATEST = (round(math.log2(scale)) for scale in (SMALLEST_SCALE, LARGEST_SCALE))
FINER = 4  # candidates below the scale of the extremes
SLACK = 1e-4  # more than averaging over processes rounds off, less than a vote


@OBSERVERS.register("power_of_two_search")
class PowerOfTwoSearchObserver(Observer):
    """Each batch votes for the power-of-two scale of least squared error on its histogram: that of its extremes, one of
    the four finer ones or, where the spec's rule may clip the extremes, one coarser. The exponent that all use is the
    `mode`, the `mean`, the `median` or the `maximum` of the votes. Where votes are even the larger scale wins: what is
    clipped can be wrong by any amount, what is rounded by half a step. Batches that are all zero do not vote.

    The range is that multiple of the extremes of all batches which has this scale. A weight is a single batch, searched
    value by value, and may have channels. Buffer: `votes`, shape (121,), for the exponents from -60 to 60.
    """

    for_weights = True
    choices: ClassVar = {"over": ("mode", "mean", "median", "maximum")}
    votes: Tensor

    def __init__(
        self, spec: TensorSpec, channels: int | None = None, axis: int | None = None, *, over: str = "mode"
    ) -> None:
        super().__init__(spec, channels, axis)
        self.over = over
        self.register_buffer("votes", torch.zeros(GREATEST - LEAST + 1, dtype=torch.float32))

    @classmethod
    def check(cls, spec: TensorSpec) -> None:
        if spec.rule is None:
            raise SpecError(
                "The observer 'power_of_two_search' finds power-of-two scales: set scale = \"power_of_two\", or choose "
                'another, such as "squared_error".'
            )

    @property
    def shifts(self) -> range:
        """By how many powers of two candidates are finer than the extremes, from the coarsest."""
        return range(0 if self.spec.rule is PowerOfTwoRule.CEIL else -1, FINER + 1)

    def exponent_of(self, low: Tensor, high: Tensor) -> Tensor:
        """The exponent, int32, of the scale of a range."""
        return torch.frexp(qparams_of_range(self.spec, low, high).scale).exponent - 1

    def update(self, x: Tensor, low: Tensor, high: Tensor, floor: float | None, ceiling: float | None) -> None:
        super().update(x, low, high, floor, ceiling)
        moments = error_on(*histogram_of(x, low, high, floor, ceiling), 2.0)
        low, high = limit_range(self.spec, low, high)
        shifts = torch.arange(self.shifts.start, self.shifts.stop, device=low.device)
        fractions = torch.ldexp(torch.ones(len(shifts), dtype=torch.float32, device=low.device), -shifts)
        best = least_on(moments, self.spec, low * fractions, high * fractions)
        index = self.exponent_of(*best).to(torch.int64) - LEAST
        counts = torch.isfinite(low) & torch.isfinite(high) & ((low < 0) | (high > 0))
        self.votes.index_add_(0, index.reshape(1), counts.to(torch.float32).reshape(1))

    def range(self) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(LEAST, GREATEST + 1, device=self.votes.device)
        low, high = limit_range(self.spec, self.low, self.high)
        shift = (self._agreed(exponents) - self.exponent_of(low, high)).clamp(LEAST, GREATEST)
        shift = torch.where(self.votes.sum() > 0, shift, 0)
        return torch.ldexp(low, shift), torch.ldexp(high, shift)

    def _agreed(self, exponents: Tensor) -> Tensor:
        """The exponent that the votes are for."""
        votes = self.votes.to(torch.float64)
        voted = votes > 0
        if self.over == "mode":
            return torch.where(votes >= votes.amax(), exponents, LEAST).amax()
        if self.over == "mean":
            mean = (votes * exponents).sum() / votes.sum().clamp(min=1e-30)
            return torch.floor(mean + 0.5 + SLACK).to(torch.int64)
        if self.over == "median":
            below = torch.cumsum(votes, 0) <= votes.sum() / 2 * (1 + SLACK)
            return torch.where(voted & ~below, exponents, GREATEST).amin()
        return torch.where(voted, exponents, LEAST).amax()

    @torch.no_grad()
    def measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(torch.float32)
        low, high = limit_range(self.spec, *self.extremes(x))
        fractions = [2.0**-shift for shift in self.shifts]
        return least_of_values(x, self.axis, self.spec, low, high, fractions, 2.0)

    def merge_processes(self) -> None:
        super().merge_processes()
        torch.distributed.all_reduce(self.votes)
        self.votes.div_(torch.distributed.get_world_size())  # the mean, so that merging again counts nothing twice
