"""From a range and a spec to the four numbers that quantize a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from edgeq.arithmetic import Sign, choose_scale

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec


class QParams(NamedTuple):
    """What quantizes a tensor; scale float32, the others int32. Scale and zero point have shape () or
    (channels,); the code bounds too where the sign depends on the range, else ().
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: Tensor
    quant_max: Tensor


def limit_range(spec: TensorSpec, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The range after the spec's `fixed_range` or `range_max`."""
    if spec.fixed_range is not None:
        negative = low < 0 if spec.sign is Sign.AUTO else spec.sign is Sign.SIGNED
        below = torch.where(torch.as_tensor(negative, device=low.device), -spec.fixed_range, 0.0)
        return below.expand_as(low), torch.full_like(high, spec.fixed_range)
    if spec.range_max is not None:
        return low.clamp(min=-spec.range_max), high.clamp(max=spec.range_max)
    return low, high


def code_bounds(spec: TensorSpec, low: Tensor) -> tuple[Tensor | int, Tensor | int]:
    """Least and greatest code of a tensor whose smallest value is `low`: tensors where the sign depends on it."""
    if spec.sign is Sign.AUTO and spec.symmetric:
        (signed_min, signed_max), (unsigned_min, unsigned_max) = spec.codes(signed=True), spec.codes(signed=False)
        signed = low < 0
        return torch.where(signed, signed_min, unsigned_min), torch.where(signed, signed_max, unsigned_max)
    return spec.codes(signed=spec.sign is Sign.SIGNED)


def qparams_of_range(spec: TensorSpec, low: Tensor, high: Tensor) -> QParams:
    """The numbers that represent each range low..high under `spec`; elementwise, so that many candidate
    ranges can be tried in one call.
    """
    low, high = limit_range(spec, low, high)
    bounds = code_bounds(spec, low)
    scale, zero_point = choose_scale(low, high, *bounds, symmetric=spec.symmetric, power_of_two_rule=spec.rule)
    return QParams(
        scale, zero_point, *(torch.as_tensor(bound, dtype=torch.int32, device=low.device) for bound in bounds)
    )
