"""Candidate ranges, and the best of them: on a histogram, or on the values themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeq.arithmetic import along, fake_quantize
from edgeq.observers.histogram_error import Moments, PowerMoments
from edgeq.qparams import qparams_of_range

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec

SMALLEST_FRACTION = 0.2


def shrunk(low: Tensor, high: Tensor, candidates: int, separately: bool) -> tuple[Tensor, Tensor]:
    """Ranges from 0.2 of the extremes to all of them, each end of shape (n,): `candidates` of them, or as many for
    each end, where the ends move `separately`.
    """
    fraction = torch.linspace(SMALLEST_FRACTION, 1, candidates, dtype=torch.float32, device=low.device)
    lows, highs = low.clamp(max=0) * fraction, high.clamp(min=0) * fraction
    if separately:
        lows, highs = torch.meshgrid(lows, highs, indexing="ij")
    return lows.reshape(-1), highs.reshape(-1)


def least_on(moments: Moments | PowerMoments, spec: TensorSpec, lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
    """The range of least error on a histogram. A candidate is judged by the scale that it really gets."""
    scale, zero_point, quant_min, quant_max = qparams_of_range(spec, lows, highs)
    step = scale.to(torch.float64)
    error = moments.error((quant_min - zero_point) * step, (quant_max - zero_point) * step, step)
    best = torch.argmin(error).reshape(1)  # indexing by a tensor without dimensions would wait for its value
    return lows[best].reshape(()), highs[best].reshape(())


def least_of_values(
    x: Tensor, axis: int | None, spec: TensorSpec, low: Tensor, high: Tensor, fractions: Iterable[float], power: float
) -> tuple[Tensor, Tensor]:
    """That fraction of the range `low` to `high` with which the values of `x`, float32, are kept with the least summed
    `power`-th power of the error; the first of equals. Of each slice along `axis`, if there is one.
    """
    best_low, best_high = low.clone(), high.clone()
    least = torch.full_like(low, torch.inf)
    for fraction in fractions:
        qparams = qparams_of_range(spec, low * fraction, high * fraction)
        scale, zero_point, quant_min, quant_max = (along(value, axis, x.dim()) for value in qparams)
        difference = fake_quantize(x, scale, zero_point, quant_min, quant_max) - x
        cost = difference.square() if power == 2 else difference.abs().pow(power)
        error = cost.sum() if axis is None else cost.transpose(0, axis).flatten(1).sum(1)
        better = error < least
        least = torch.where(better, error, least)
        best_low, best_high = (
            torch.where(better, low * fraction, best_low),
            torch.where(better, high * fraction, best_high),
        )
    return best_low, best_high
