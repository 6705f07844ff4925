"""Fake quantization that is quick on a CPU and differentiable everywhere.

`edgeq.arithmetic.fake_quantize` is the definition; the functions here give the same numbers. On a CPU they
work in place on blocks that stay in the second-level cache, with as few vectorized operations as there are.
Codes are kept centred, q - z, which saves adding the zero point and taking it away again.

Gradients are straight through (Bengio et al., arXiv 1308.3432): that of the rounding is one inside of the
representable range and zero outside.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgeq import arithmetic
from edgeq.arithmetic import Rounding, round_to_integer
from edgeq.qparams import QParams

ROUNDING_OFFSET = 1.5 * 2.0**23
BLOCK = 1 << 17  # elements; 512 KiB of float32


class Grid(NamedTuple):
    """The representable points: scale * {lower, ..., upper}, all float32 tensors of shape ()."""

    scale: Tensor
    lower: Tensor
    upper: Tensor


def grid_of(
    qparams: QParams,
    floor: float | None = None,
    ceiling: float | None = None,
    rounding: Rounding = Rounding.HALF_EVEN,
) -> Grid:
    """The grid of per-tensor parameters, cut to the bounds of an activation function in front.

    Rounding is monotonic, so clamping x to floor..ceiling first and clamping its code to the codes of floor
    and ceiling afterwards are the same; the second costs nothing.
    """
    scale = qparams.scale
    lower = (qparams.quant_min - qparams.zero_point).to(torch.float32)
    upper = (qparams.quant_max - qparams.zero_point).to(torch.float32)
    if floor is not None:
        lower = torch.clamp(round_to_integer(floor / scale, rounding), lower, upper)
    if ceiling is not None:
        upper = torch.clamp(round_to_integer(ceiling / scale, rounding), lower, upper)
    return Grid(scale, lower, upper)


def fake_quantize(
    x: Tensor,
    grid: Grid,
    rounding: Rounding = Rounding.HALF_EVEN,
    floor: float | None = None,
    ceiling: float | None = None,
    overwrite: bool = False,
) -> Tensor:
    """`x` on the grid, in the type of `x`. `floor` and `ceiling` bound the gradient, as the activation that
    the grid was cut to would. `overwrite` allows `x` itself to take the result where no gradient is wanted.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        if torch.compiler.is_compiling():
            low, high = gradient_bounds(grid, floor, ceiling)
            return with_gradient_of(torch.clamp(x, low, high), snap(x.detach(), grid, rounding))
        return StraightThrough.apply(x, *grid, rounding, floor, ceiling)
    return snap(x, grid, rounding, overwrite)


def gradient_bounds(grid: Grid, floor: float | None, ceiling: float | None) -> tuple[Tensor, Tensor]:
    """Between what the gradient passes: half a step beyond the grid's ends, within the activation's bounds."""
    low, high = (grid.lower - 0.5) * grid.scale, (grid.upper + 0.5) * grid.scale
    low = low if floor is None else low.clamp(min=floor)
    return low, high if ceiling is None else high.clamp(max=ceiling)


def with_gradient_of(simulated: Tensor, exact: Tensor) -> Tensor:
    """`exact`, bit for bit, with the gradient of `simulated`, in operations that any compiler can follow: PyTorch 2.11
    compiles the backward of an autograd function into zeros.
    """
    return exact.detach() + (simulated - simulated.detach())


def snap(x: Tensor, grid: Grid, rounding: Rounding, overwrite: bool = False) -> Tensor:
    """The point of the grid that stands for each value of `x`; no gradient."""
    if not in_blocks(x):
        codes = round_to_integer(x.to(torch.float32) / grid.scale, rounding)
        return (torch.clamp(codes, grid.lower, grid.upper) * grid.scale).to(x.dtype)
    low, high = grid.lower.item(), grid.upper.item()
    if x.numel() <= BLOCK and x.dtype is torch.float32:
        y = torch.div(x, grid.scale, out=x if overwrite else None)
        return settle(y, low, high, rounding).mul_(grid.scale)
    x = x if is_dense(x) else x.contiguous()
    y = x if overwrite else torch.empty_like(x)
    for source, target in blocks(x, y):
        block = target
        if x.dtype is torch.float32:
            torch.div(source, grid.scale, out=block)
        else:
            block = source.to(torch.float32).div_(grid.scale)  # not in half precision, as torch.div would
        settle(block, low, high, rounding).mul_(grid.scale)
        if block is not target:
            target.copy_(block)
    return y


def settle(block: Tensor, low: float, high: float, rounding: Rounding) -> Tensor:
    """Rounds and clamps real codes in place."""
    if rounding is Rounding.HALF_EVEN:
        block.round_()
    else:
        block.copy_(round_to_integer(block, rounding))
    return block.clamp_(low, high)


def centred_codes(x: Tensor, scale: Tensor) -> Tensor:
    """The integers, as float32, that the values of `x` are multiples of `scale` by."""
    if not in_blocks(x) or x.dtype is not torch.float32:
        return torch.round(x.to(torch.float32) / scale)
    x = x if is_dense(x) else x.contiguous()
    codes = torch.empty_like(x)
    for source, target in blocks(x, codes):
        torch.div(source, scale, out=target)
        target.round_()
    return codes


def settle_accumulator(
    accumulator: Tensor,
    factor: Tensor,
    low: float,
    high: float,
    rounding: Rounding,
    scale: Tensor | None = None,
) -> Tensor:
    """Requantizes an integer accumulator, float32, to centred codes in low..high, or with `scale` to the real
    numbers that they stand for; in place where that is quicker. `factor` broadcasts to the accumulator without
    its first dimension.
    """
    if not in_blocks(accumulator):
        codes = round_to_integer(accumulator * factor, rounding).clamp_(low, high)
        return codes if scale is None else codes * scale
    for part in _slices(accumulator, factor):
        settle(part.mul_(factor), low, high, rounding)
        if scale is not None:
            part.mul_(scale)
    return accumulator


def encode(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, rounding: Rounding) -> Tensor:
    """Codes of `x` between `low` and `high`, of the type of `zero_point`: `arithmetic.quantize`, in blocks."""
    if not in_blocks(x):
        return arithmetic.quantize(x, scale, zero_point, low, high, None, rounding, zero_point.dtype)
    x = x if is_dense(x) else x.contiguous()
    codes = torch.empty_like(x, dtype=zero_point.dtype)
    zero = int(zero_point)
    for source, target in blocks(x, codes):
        store(torch.div(source.to(torch.float32), scale), zero, low, high, rounding, target)
    return codes


def store(block: Tensor, zero: int, low: int, high: int, rounding: Rounding, target: Tensor) -> None:
    """Rounds real codes, in place, and stores them as integers."""
    if rounding is not Rounding.HALF_EVEN:
        target.copy_(round_to_integer(block, rounding).add_(zero).clamp_(low, high))
        return
    # Around 1.5 * 2**23 float32 holds just the integers: adding that rounds half to even, and leaves the code in
    # the last byte of the sum. It takes half the time of rounding and converting.
    block.clamp_(low - zero, high - zero).add_(ROUNDING_OFFSET)
    codes = target.view(torch.uint8)
    codes.copy_(block.view(torch.int32))
    if zero:
        codes.add_(zero % 256)


def decode(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The numbers that per-tensor codes stand for, float32: `arithmetic.dequantize`, in blocks."""
    if not in_blocks(codes):
        return arithmetic.dequantize(codes, scale, zero_point)
    codes = codes if is_dense(codes) else codes.contiguous()
    x = torch.empty_like(codes, dtype=torch.float32)
    for source, target in blocks(codes, x):
        target.copy_(source).sub_(zero_point).mul_(scale)
    return x


def centre(codes: Tensor, zero_point: Tensor) -> Tensor:
    """``codes - zero_point`` as float32."""
    return codes.to(torch.float32).sub_(zero_point)


def encode_accumulator(
    accumulator: Tensor,
    factor: Tensor,
    zero_point: Tensor,
    low: int,
    high: int,
    rounding: Rounding,
    codes: Tensor | None = None,
) -> Tensor:
    """Requantizes an integer accumulator, float32, to codes: `arithmetic.requantize`, in blocks. `factor`
    broadcasts to the accumulator without its first dimension. The accumulator is overwritten. On a CPU `codes`
    may be where the result is to be written.
    """
    if not in_blocks(accumulator):
        return arithmetic.requantize(accumulator, factor, zero_point, low, high, None, rounding, zero_point.dtype)
    codes = torch.empty_like(accumulator, dtype=zero_point.dtype) if codes is None else codes
    zero = int(zero_point)
    for part, target in zip(_slices(accumulator, factor), _slices(codes, factor), strict=True):
        store(part.mul_(factor), zero, low, high, rounding, target)
    return codes


def _slices(accumulator: Tensor, factor: Tensor) -> tuple[Tensor, ...]:
    """Pieces of about one block along the first dimension, which `factor` does not lie along."""
    small = accumulator.numel() <= BLOCK or factor.dim() >= accumulator.dim() or torch.get_num_threads() > 1
    return (accumulator,) if small else accumulator.split(max(1, BLOCK // accumulator[0].numel()))


def in_blocks(x: Tensor) -> bool:
    """Whether the blocked CPU kernel is the right one: eager, and on a CPU."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def is_dense(x: Tensor) -> bool:
    """Whether the memory of `x` has no gaps and no overlaps, in whatever order its dimensions lie."""
    return x.is_contiguous() or torch.empty_like(x).stride() == x.stride()


def blocks(*tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    """The pieces, side by side, of dense tensors of equal strides, in the order of their memory.

    With several threads one piece is the whole: many small parallel regions cost more than the cache saves.
    """
    size = BLOCK if torch.get_num_threads() == 1 else max(1, tensors[0].numel())
    parts = (value.as_strided((value.numel(),), (1,)).split(size) for value in tensors)
    return zip(*parts, strict=True)


class StraightThrough(torch.autograd.Function):
    """Fake quantization with the straight-through gradient; saves its input, and nothing else of that size."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        lower: Tensor,
        upper: Tensor,
        rounding: Rounding,
        floor: float | None,
        ceiling: float | None,
    ) -> Tensor:
        """`x` on the grid; keeps what the gradient needs."""
        grid = Grid(scale, lower, upper)
        ctx.save_for_backward(x, *gradient_bounds(grid, floor, ceiling))
        return snap(x, grid, rounding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """One where the input was inside of the range, zero elsewhere."""
        (grad,) = grads
        x, low, high = ctx.saved_tensors
        if in_blocks(x):
            inside = torch.ops.aten.hardtanh_backward(grad, x, low.item(), high.item())
        else:
            inside = grad * ((x > low) & (x < high))
        return inside, None, None, None, None, None, None
