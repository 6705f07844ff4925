"""The passes over tensors that a learned step needs, on a CPU in blocks that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edgeq.arithmetic import Rounding, round_to_integer
from edgeq.quantizers import kernel
from edgeq.quantizers.kernel import Grid

BLOCK = kernel.BLOCK // 2  # five tensors are in use at once


def rows_of(scale: Tensor, *tensors: Tensor) -> tuple[int, int] | None:
    """How many rows of how many elements the memory of alike tensors is, if each row has a number of the scale; None
    where it is not so, or where there is no use in blocks.
    """
    first = tensors[0]
    alike = all(value.stride() == first.stride() for value in tensors)
    if not alike or not kernel.in_blocks(first) or not kernel.is_dense(first) or first.numel() == 0:
        return None
    if scale.dim() == 0:
        return 1, first.numel()
    lies_first = scale.dim() == first.dim() and scale.numel() == len(scale) == len(first)
    return (len(first), first.stride(0)) if lies_first and first.stride(0) * len(first) == first.numel() else None


def blocks(rows: int, columns: int, scale: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The scale and pieces of tensors of so many rows, side by side: parts of one row, or several whole ones."""
    size = BLOCK if torch.get_num_threads() == 1 else rows * columns
    if rows == 1:
        parts = (value.as_strided((columns,), (1,)).split(size) for value in tensors)
        yield from ((scale.reshape(()), *pieces) for pieces in zip(*parts, strict=True))
        return
    count = max(1, size // columns)
    parts = (value.as_strided((rows, columns), (columns, 1)).split(count) for value in tensors)
    yield from zip(scale.reshape(rows, 1).split(count), *parts, strict=True)


def snap(x: Tensor, grid: Grid, rounding: Rounding) -> Tensor:
    """The point of the grid that stands for each value of `x`, at a scale that broadcasts to it; no gradient."""
    scale = grid.scale
    if scale.dim() == 0:
        return kernel.snap(x, grid, rounding)
    shape = rows_of(scale, x)
    if shape is None:
        codes = round_to_integer(x.to(torch.float32) / scale, rounding)
        return (torch.clamp(codes, grid.lower, grid.upper) * scale).to(x.dtype)
    y = torch.empty_like(x)
    low, high = grid.lower.item(), grid.upper.item()
    for step, source, target in blocks(*shape, scale, x, y):
        if x.dtype is torch.float32:
            kernel.settle(torch.div(source, step, out=target), low, high, rounding).mul_(step)
        else:
            target.copy_(kernel.settle(source.to(torch.float32).div_(step), low, high, rounding).mul_(step))
    return y


def backward(
    upstream: Tensor, x: Tensor, scale: Tensor, ends: Sequence[Tensor], rounding: Rounding, rounding_error: bool
) -> tuple[Tensor, Tensor]:
    """The gradient in `x`, and that in the scale. `ends` are least and greatest code, and the ratios r = x / s between
    which the gradient passes.

    With the gradient g upstream, g' of it inside, and codes q, the one in s is the sum of g' (q - r) inside and g q
    outside, which is that of g q - g' r; without the error of rounding it is that of g q - g' q.
    """
    if upstream.stride() != x.stride():
        x = x if kernel.is_dense(x) else x.contiguous()
        upstream = torch.empty_like(x, dtype=upstream.dtype).copy_(upstream)
    found = torch.empty_like(x)
    shape = rows_of(scale, x, upstream, found)
    if shape is None:
        found, inside, above, below = backward_apart(upstream, x, scale, ends, rounding)
        outside = ends[0] * below + ends[1] * above
        return found, inside + outside if rounding_error else outside
    if x.dtype is not torch.float32 or upstream.dtype is not torch.float32:
        half, (x, upstream) = x.dtype, (value.to(torch.float32) for value in (x, upstream))
        found, total = backward(upstream, x, scale, ends, rounding, rounding_error)
        return found.to(half), total
    lower, upper, low, high = (end.item() for end in ends)
    mask = torch.ops.aten.hardtanh_backward.grad_input
    sums = []
    ratio = codes = torch.empty(0)
    for factor, grad, value, passed in blocks(*shape, 1 / scale, upstream, x, found):
        if ratio.shape != value.shape:  # in the first block, and in the last
            ratio, codes = torch.empty(2, *value.shape)
        torch.mul(value, factor, out=ratio)
        if rounding is Rounding.HALF_EVEN:
            torch.round(ratio, out=codes)
        else:
            codes.copy_(round_to_integer(ratio, rounding))
        codes.clamp_(lower, upper)
        mask(grad, ratio, low, high, grad_input=passed)
        real = ratio if rounding_error else codes.clone()
        if factor.dim() == 0:
            sums.append(torch.dot(grad, codes) - torch.dot(passed, real))
        else:
            sums.append(codes.mul_(grad).addcmul_(passed, real, value=-1).sum(1))
    total = torch.cat(sums) if scale.dim() > 0 else torch.stack(sums).sum(dtype=torch.float64)
    return found, total.to(torch.float32).reshape(scale.shape)


def backward_apart(
    upstream: Tensor, x: Tensor, scale: Tensor, ends: Sequence[Tensor], rounding: Rounding
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient in `x`; and, in the shape of the scale, the sums of the upstream gradient times ``q - r`` inside,
    and of it alone above and below. For any device and any scale.
    """
    lower, upper, low, high = ends
    dtype, upstream = x.dtype, upstream.to(torch.float32)
    ratio = x.to(torch.float32) / scale
    codes = torch.clamp(round_to_integer(ratio, rounding), lower, upper)
    inside = upstream * ((ratio > low) & (ratio < high))
    outside = upstream - inside
    above = outside * (ratio > (low + high) / 2)
    parts = inside * (codes - ratio), above, outside - above
    sums = (part.sum(dtype=torch.float64) if scale.dim() == 0 else part.sum_to_size(scale.shape) for part in parts)
    within, over, under = (value.to(torch.float32) for value in sums)
    return inside.to(dtype), within, over, under
