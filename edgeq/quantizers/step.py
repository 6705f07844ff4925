"""Fake quantization that is differentiable in its grid as well: ``y = s * clamp(round(x / s), l, u)``.

With r = x / s the gradients are, in x, one inside of l < r < u and zero outside; in s, ``round(r) - r`` inside, l below
and u above (Esser et al., arXiv 1902.08153); in l and u, s below and above. Whatever s, l and u come of, a threshold,
its logarithm, an offset, gets the gradient that its paper states by the chain rule.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgeq.arithmetic import Rounding, round_to_integer
from edgeq.quantizers import kernel
from edgeq.quantizers.kernel import Grid
from edgeq.quantizers.step_kernel import backward, backward_apart, snap


class Manner(NamedTuple):
    """How a tensor is rounded, and how its gradient is defined.

    `floor` and `ceiling` are the bounds of an activation function that is applied first. `margin` is by how many steps
    the inside reaches beyond the grid's ends. Without `rounding_error` the gradient in s is that of the clamp alone:
    zero inside.
    """

    rounding: Rounding = Rounding.HALF_EVEN
    floor: float | None = None
    ceiling: float | None = None
    margin: float = 0.0
    rounding_error: bool = True


PLAIN = Manner()


class Ends(NamedTuple):
    """What bounds of an activation function make of a grid, all of shape (): its codes `lower` and `upper`; the ratios
    `low` and `high` between which x / s counts as inside; the gradients in s `below` and `above` them; and whether
    the activation function ends the range there (`floored`, `ceiled`), and not the grid.
    """

    lower: Tensor
    upper: Tensor
    low: Tensor
    high: Tensor
    below: Tensor
    above: Tensor
    floored: Tensor
    ceiled: Tensor


def quantize(x: Tensor, grid: Grid, manner: Manner = PLAIN) -> Tensor:
    """`x` on the grid, in the type of `x`, differentiable in x and in the grid. The scale is any that broadcasts to
    `x`, also a negative one; the ends are numbers, or tensors of shape ().
    """
    ends = [torch.as_tensor(end, dtype=torch.float32, device=x.device) for end in (grid.lower, grid.upper)]
    grid = Grid(grid.scale, *ends)
    if torch.compiler.is_compiling():
        return traceable(x, grid, manner)
    return LearnedStep.apply(x, *grid, manner)


@torch.no_grad()
def ends_of(grid: Grid, manner: Manner) -> Ends:
    """The ends of the grid, cut to the activation function's bounds."""
    scale, lower, upper = grid
    no = torch.zeros((), dtype=torch.bool, device=lower.device)
    ends = Ends(lower, upper, lower - manner.margin, upper + manner.margin, lower, upper, no, no)
    if manner.floor is not None:
        bound = manner.floor / scale
        code = torch.clamp(round_to_integer(bound, manner.rounding), lower, upper)
        cut = bound > ends.low
        slope = code - bound if manner.rounding_error else torch.zeros_like(code)
        below = torch.where(cut, slope, lower)
        ends = ends._replace(lower=code, low=torch.where(cut, bound, ends.low), below=below, floored=cut)
    if manner.ceiling is not None:
        bound = manner.ceiling / scale
        code = torch.clamp(round_to_integer(bound, manner.rounding), ends.lower, upper)
        cut = bound < ends.high
        slope = code - bound if manner.rounding_error else torch.zeros_like(code)
        above = torch.where(cut, slope, upper)
        ends = ends._replace(upper=code, high=torch.where(cut, bound, ends.high), above=above, ceiled=cut)
    return ends


def traceable(x: Tensor, grid: Grid, manner: Manner) -> Tensor:
    """`quantize` in operations that any compiler can follow: PyTorch 2.11 compiles the backward of an autograd function
    into zeros.
    """
    ends = ends_of(Grid(*(value.detach() for value in grid)), manner)
    exact = snap(x.detach(), Grid(grid.scale.detach(), ends.lower, ends.upper), manner.rounding)
    if not torch.is_grad_enabled():
        return exact
    real = x.to(torch.float32)
    if manner.floor is not None or manner.ceiling is not None:
        real = torch.clamp(real, manner.floor, manner.ceiling)
    ratio = real / grid.scale
    margin = manner.margin
    inside = (ratio > grid.lower - margin) & (ratio < grid.upper + margin)
    nearest = torch.where(ratio > (grid.lower + grid.upper) / 2, grid.upper, grid.lower)
    ratio = torch.where(inside, ratio, nearest)
    if manner.rounding_error:
        codes = torch.clamp(round_to_integer(ratio.detach(), manner.rounding), ends.lower, ends.upper)
        ratio = kernel.with_gradient_of(ratio, codes)
    return kernel.with_gradient_of((ratio * grid.scale).to(x.dtype), exact)


class LearnedStep(torch.autograd.Function):
    """`quantize`; saves its input, and nothing else of that size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lower: Tensor, upper: Tensor, manner: Manner) -> Tensor:
        """`x` on the grid."""
        ends = ends_of(Grid(scale, lower, upper), manner)
        ctx.save_for_backward(x, scale, *ends)
        ctx.manner = manner
        return snap(x, Grid(scale, ends.lower, ends.upper), manner.rounding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients in the input and in the grid."""
        x, scale, *rest = ctx.saved_tensors
        dtype, x, upstream = x.dtype, x.to(torch.float32), grads[0].to(torch.float32)
        ends, manner, wanted = Ends(*rest), ctx.manner, ctx.needs_input_grad
        apart = wanted[2] or wanted[3] or manner.ceiling is not None or bool(manner.floor)
        if not apart:
            grad, in_scale = backward(upstream, x, scale, ends[:4], manner.rounding, manner.rounding_error)
            return grad.to(dtype), in_scale, None, None, None
        grad, inside, above, below = backward_apart(upstream, x, scale, ends[:4], manner.rounding, wanted[2])
        outside = ends.above * above + ends.below * below
        in_scale = inside + outside if manner.rounding_error else outside
        in_lower = torch.where(ends.floored, 0.0, (scale * below).sum())
        in_upper = torch.where(ends.ceiled, 0.0, (scale * above).sum())
        return grad.to(dtype), in_scale, in_lower, in_upper, None
