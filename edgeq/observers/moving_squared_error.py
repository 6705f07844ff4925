"""The range of least squared error, where it must follow a network while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from edgeq.observers.histogram import histogram_of
from edgeq.observers.histogram_error import error_on
from edgeq.observers.moving_average import MovingAverageObserver
from edgeq.observers.registry import OBSERVERS
from edgeq.observers.search import least_on, shrunk
from edgeq.observers.squared_error import SquaredErrorObserver

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec


@OBSERVERS.register("moving_squared_error")
class MovingSquaredErrorObserver(MovingAverageObserver):
    """Exponential moving average, as of `moving_average`, of the range of least squared error of each batch, which is
    searched on that batch's histogram. No value is read by the host, so it does for training. A weight, which is
    there as a whole, is searched as by `squared_error`, and may have channels. The options are those of the two.
    """

    bounds: ClassVar = {**SquaredErrorObserver.bounds, "momentum": (0.0, 1.0)}

    def __init__(
        self,
        spec: TensorSpec,
        channels: int | None = None,
        axis: int | None = None,
        *,
        candidates: int = 33,
        power: float = 2.0,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(spec, channels, axis, momentum=momentum)
        self.candidates, self.power = candidates, power

    def update(self, x: Tensor, low: Tensor, high: Tensor, floor: float | None, ceiling: float | None) -> None:
        moments = error_on(*histogram_of(x, low, high, floor, ceiling), self.power)
        lows, highs = shrunk(low, high, self.candidates, separately=not self.spec.symmetric)
        super().update(x, *least_on(moments, self.spec, lows, highs), floor, ceiling)

    @torch.no_grad()
    def measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        search = SquaredErrorObserver(self.spec, axis=self.axis, candidates=self.candidates, power=self.power)
        return search.measure(x)
