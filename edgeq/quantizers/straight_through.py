"""Numbers that are rounded or bounded, with the gradient of what they were before (Bengio et al., arXiv 1308.3432).

All of them give their value bit for bit, whatever their gradient is, and never keep a parameter itself for the backward
pass: an optimizer, or a quantizer that starts, may write into it meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import torch
from torch import Tensor

from edgeq.arithmetic import LARGEST_SCALE, SMALLEST_SCALE, PowerOfTwoRule, power_of_two
from edgeq.quantizers.kernel import with_gradient_of


def gradient_times(x: Tensor, factor: Tensor | float) -> Tensor:
    """`x`, whose gradient is multiplied by `factor`."""
    return with_gradient_of(x * factor, x)


def scale_of_step(step: Tensor, unit: Tensor | float, factor: Tensor | float, rule: PowerOfTwoRule | None) -> Tensor:
    """The size of `step`, in units, as a scale: within the bounds that scales have, and with a rule a power of two. A
    step that an optimizer has driven below zero comes out on the other side. The gradient, which for a power of two p
    is p / step, is multiplied by `factor`.
    """
    size = (step.detach().abs() * unit).clamp(SMALLEST_SCALE, LARGEST_SCALE)
    scale = size if rule is None else power_of_two(size, rule)
    return given_slope(step, scale, torch.copysign(scale / size * unit * factor, step.detach()))


def exact_power_of_two(exponent: Tensor, nearest: Callable[[Tensor], Tensor]) -> Tensor:
    """Two to the power of the integer that is `nearest` to `exponent`, exactly, with the gradient of a power whose
    exponent was not rounded. It is made of bits: no function of a device's is exact everywhere.
    """
    exponent = exponent.clone()
    integer = nearest(exponent.detach()).clamp(-40, 60).to(torch.int32)
    power = ((integer + 127) << 23).view(torch.float32)
    return with_gradient_of(exponent * (power * log(2)), power)


def given_slope(x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """`value`, computed from `x` with the derivative `slope`; all broadcast to the value's shape."""
    if torch.compiler.is_compiling():
        return with_gradient_of(x * slope, value)
    return GivenSlope.apply(x, value, slope)


class GivenSlope(torch.autograd.Function):
    """`given_slope`, in one node of the graph of gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """The value."""
        ctx.save_for_backward(slope)
        ctx.shape = x.shape
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient in `x`."""
        (slope,) = ctx.saved_tensors
        return (grads[0] * slope).sum_to_size(ctx.shape), None, None
