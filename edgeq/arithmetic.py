"""The one arithmetic of edgeq.

Whatever is simulated, converted, exported or checked calls the functions of this file, so that a formula
exists once. They are pure: tensors in, tensors out, no state, nothing in place.

Terms. A real number x is represented by an integer code q through a scale s and a zero point z::

    q = clamp(round(x / s) + z, quant_min, quant_max)          x' = (q - z) * s

which is QuantizeLinear and DequantizeLinear of the ONNX operator specification. Scales are float32, zero
points int32. A value per tensor has shape (), a value per channel has shape (channels,) and comes with the
axis that it lies along. All arithmetic is in float32 unless said otherwise, since that is what the runtimes do.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

# Scales outside of these bounds overflow or underflow float32 once two of them are multiplied (a bias) and
# divided by a third (a multiplier), so no range, however degenerate, may lead out of them.
SMALLEST_SCALE = 2.0**-60
LARGEST_SCALE = 2.0**60

# A bias code is added to an accumulator that the float32 simulation holds exactly only below 2**24.
LARGEST_EXACT_INTEGER = 2**24
LARGEST_BIAS = 2**23


class Rounding(StrEnum):
    """How a real number becomes an integer; the names say what happens exactly half way."""

    HALF_EVEN = "half_even"  # IEEE 754 and ONNX
    HALF_UP = "half_up"  # towards plus infinity: adding one half and shifting, in fixed point
    HALF_AWAY = "half_away"  # away from zero: C's round()
    FLOOR = "floor"  # a plain arithmetic shift


class PowerOfTwoRule(StrEnum):
    """Which power of two stands for a scale that is not one."""

    CEIL = "ceil"  # the whole range stays representable
    NEAREST = "nearest"  # nearest in the logarithm: finer steps, up to a factor sqrt(2) may clip
    FLOOR = "floor"


class Sign(StrEnum):
    """Whether codes are signed. AUTO: affine codes are unsigned; symmetric ones are unsigned exactly when the
    tensor never goes below zero, so that no code is wasted after a ReLU.
    """

    AUTO = "auto"
    SIGNED = "signed"
    UNSIGNED = "unsigned"


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and greatest code of `bits` bits: -2**(b-1)..2**(b-1)-1 signed, 0..2**b-1 unsigned."""
    if not 2 <= bits <= 32:
        raise ValueError(f"bits must lie in 2..32, got {bits}.")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def clamp(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """`x` within low..high, both numbers or both tensors."""
    return torch.clamp(x, low, high)  # type: ignore[arg-type]


def along(values: Tensor, axis: int | None, dimensions: int) -> Tensor:
    """`values` of shape (channels,) made to broadcast along `axis` of a tensor with that many dimensions."""
    if axis is None or values.dim() == 0:
        return values
    shape = [1] * dimensions
    shape[axis] = -1
    return values.reshape(shape)


def round_to_integer(x: Tensor, rounding: Rounding = Rounding.HALF_EVEN) -> Tensor:
    """`x` rounded to integers, still floating point.

    The modes other than half-even compare the fraction with one half instead of adding one half first: the
    sum 0.49999997 + 0.5 is 1.0 in float32 and would round up what lies below the half.
    """
    if rounding is Rounding.HALF_EVEN:
        return torch.round(x)
    if rounding is Rounding.FLOOR:
        return torch.floor(x)
    if rounding is Rounding.HALF_UP:
        below = torch.floor(x)
        return below + (x - below >= 0.5).to(x.dtype)
    size = torch.abs(x)
    below = torch.floor(size)
    return torch.copysign(below + (size - below >= 0.5).to(x.dtype), x)


def power_of_two(value: Tensor, rule: PowerOfTwoRule = PowerOfTwoRule.CEIL) -> Tensor:
    """The power of two, exact in float32, that stands for each positive `value` under `rule`.

    Works on the bits of the number, because log2 and exp2 are not exact at powers of two on every device.
    """
    value = value.to(torch.float32).clamp(SMALLEST_SCALE, LARGEST_SCALE)
    bits = value.view(torch.int32)
    exponent, fraction = bits >> 23, bits & 0x7FFFFF
    if rule is PowerOfTwoRule.CEIL:
        exponent = exponent + (fraction != 0).to(torch.int32)
    elif rule is PowerOfTwoRule.NEAREST:
        sqrt_two_fraction = 0x3504F3
        exponent = exponent + (fraction > sqrt_two_fraction).to(torch.int32)
    return (exponent << 23).view(torch.float32)


def choose_scale(
    low: Tensor,
    high: Tensor,
    quant_min: Tensor | int,
    quant_max: Tensor | int,
    *,
    symmetric: bool,
    power_of_two_rule: PowerOfTwoRule | None = None,
) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32) that represent the range low..high, which is made to hold 0.

    Affine: ``s = (high - low) / (quant_max - quant_min)``, ``z = quant_min - round(low / s)``.
    Symmetric: z = 0 and ``s = max(low / quant_min, high / quant_max)``, so that both ends are representable.
    With a power-of-two rule the number of steps is one greater (2**b, or 2**(b-1) on a signed side): the
    end of the range may clip by one step, but a range of exactly 2**k does not double its step for that.

    A range of no extent (zeros, an empty tensor) counts as one of extent 1: its scale must be finite, and
    fine enough that a bias is still representable at it.
    """
    scale = widest_scale(low, high, quant_min, quant_max, symmetric, power_of_two_rule is not None)
    if power_of_two_rule is not None:
        scale = power_of_two(scale, power_of_two_rule)
    if symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    zero_point = quant_min - torch.round(low.to(torch.float32).clamp(max=0.0) / scale)
    return scale, clamp(zero_point, quant_min, quant_max).to(torch.int32)


def widest_scale(
    low: Tensor,
    high: Tensor,
    quant_min: Tensor | int,
    quant_max: Tensor | int,
    symmetric: bool,
    is_power_of_two: bool,
) -> Tensor:
    """The scale of `choose_scale`; a power of two before it is rounded to one."""
    low, high = low.to(torch.float32).clamp(max=0.0), high.to(torch.float32).clamp(min=0.0)
    extra = 1 if is_power_of_two else 0
    steps = quant_max if symmetric else quant_max - quant_min
    if symmetric:
        scale = torch.maximum(_below(low, quant_min), high / (quant_max + extra))
    else:
        scale = high / (steps + extra) - low / (steps + extra)
    scale = torch.where(scale > 0, scale, 1 / steps)
    return scale.clamp(SMALLEST_SCALE, LARGEST_SCALE)


def _below(low: Tensor, quant_min: Tensor | int) -> Tensor:
    """The scale that a symmetric range needs for its negative end; unsigned codes have none."""
    if isinstance(quant_min, int):
        return low / quant_min if quant_min < 0 else torch.zeros_like(low)
    return torch.where(quant_min < 0, low / quant_min.clamp(max=-1), 0.0)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: Tensor | int,
    quant_max: Tensor | int,
    axis: int | None = None,
    rounding: Rounding = Rounding.HALF_EVEN,
    dtype: torch.dtype = torch.int32,
) -> Tensor:
    """The codes of `x` (any floating type), as `dtype`. Divides by the scale, as ONNX does: multiplying by
    the reciprocal gives another code at ties. What lies outside of the code range saturates.
    """
    ratio = x.to(torch.float32) / along(scale, axis, x.dim())
    codes = round_to_integer(ratio, rounding) + along(zero_point, axis, x.dim())
    return clamp(codes, quant_min, quant_max).to(dtype)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    """The real numbers, float32, that the codes stand for."""
    centred = codes.to(torch.float32) - along(zero_point, axis, codes.dim())
    return centred * along(scale, axis, codes.dim())


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: Tensor | int,
    quant_max: Tensor | int,
    axis: int | None = None,
    rounding: Rounding = Rounding.HALF_EVEN,
) -> Tensor:
    """`x` as the codes keep it, in the type of `x`: the definition that every faster kernel is tested against."""
    codes = quantize(x, scale, zero_point, quant_min, quant_max, axis, rounding)
    return dequantize(codes, scale, zero_point, axis).to(x.dtype)


def bias_scale(input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """The scale of a bias, which is the scale of the accumulator that it is added to."""
    return input_scale * weight_scale


def bias_range(bits: int) -> tuple[int, int]:
    """Least and greatest code of a bias: those of its type that float32, which they pass through, holds. Its
    neighbour 2**31 would become the least integer of 32 bits.
    """
    low, high = code_range(bits, signed=True)
    return low, high if bits <= 25 else 2 ** (bits - 1) - 2 ** (bits - 25)


def smallest_weight_scale(bias: Tensor, input_scale: Tensor, bias_bits: int) -> Tensor:
    """The smallest weight scale at which `bias` fits its integer type and stays exact in the simulation."""
    greatest = min(code_range(bias_bits, signed=True)[1], LARGEST_BIAS)
    return bias.abs() / (input_scale * greatest)


def multiplier(input_scale: Tensor, weight_scale: Tensor, output_scale: Tensor) -> Tensor:
    """What an accumulator is multiplied with to become an output code: QLinearConv of ONNX, in float32."""
    return input_scale * weight_scale / output_scale


def requantize(
    accumulator: Tensor,
    factor: Tensor,
    zero_point: Tensor,
    quant_min: Tensor | int,
    quant_max: Tensor | int,
    axis: int | None = None,
    rounding: Rounding = Rounding.HALF_EVEN,
    dtype: torch.dtype = torch.int32,
) -> Tensor:
    """Output codes of an integer accumulator (any type that holds it exactly) under `factor`."""
    scaled = accumulator.to(torch.float32) * along(factor, axis, accumulator.dim())
    codes = round_to_integer(scaled, rounding) + zero_point
    return clamp(codes, quant_min, quant_max).to(dtype)
