"""The passes over tensors that a learned step needs, on a CPU in blocks that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edgeq.arithmetic import Rounding, round_to_integer
from edgeq.quantizers import kernel
from edgeq.quantizers.kernel import Grid

BLOCK = kernel.BLOCK // 2  # four tensors are in use at once


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
    """The gradient in `x`, float32, and that in the scale. `ends` are least and greatest code, and the ratios r = x / s
    between which the gradient passes.

    With the gradient g upstream, g' of it inside, and codes q, the one in s is the sum of g' (q - r) inside and g q
    outside, which is that of g q - g' r; without the error of rounding it is that of g q - g' q.
    """
    sums = []
    found, products = torch.empty_like(x), torch.empty(0)
    for grad, passed, ratio in _in_blocks(upstream, x, scale, ends, found):
        if grad.dim() == 1:
            real = torch.dot(passed, ratio)
            codes = _codes(ratio, ends, rounding)
            sums.append(torch.dot(grad, codes) - (real if rounding_error else torch.dot(passed, codes)))
            continue
        if products.shape != ratio.shape:
            products = torch.empty_like(ratio)
        torch.mul(passed, ratio, out=products)
        codes = _codes(ratio, ends, rounding)
        products = products if rounding_error else torch.mul(passed, codes, out=products)
        sums.append(products.addcmul_(grad, codes, value=-1).sum(1).neg_())
    if not sums:
        found, inside, above, below = _in_one(upstream, x, scale, ends, rounding)
        outside = ends[0] * below + ends[1] * above
        return found, inside + outside if rounding_error else outside
    total = torch.cat(sums) if sums[0].dim() > 0 else torch.stack(sums).sum(dtype=torch.float64)
    return found, total.to(torch.float32).reshape(scale.shape)


def backward_apart(
    upstream: Tensor, x: Tensor, scale: Tensor, ends: Sequence[Tensor], rounding: Rounding, below_too: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient in `x`; and, in the shape of the scale, the sums of the upstream gradient times ``q - r`` inside,
    and of it alone above and below; without `below_too` the latter may be given as zero where the least code is.

    Above and below are told apart by the sums of it, and of it times the codes, over all that is outside.
    """
    sums = []
    found = torch.empty_like(x)
    below_too = below_too or bool(ends[0] != 0)
    if scale.dim() == 0 and bool(ends[0] < ends[1]):
        for grad, passed, ratio in _in_blocks(upstream, x, scale, ends, found):
            real = torch.dot(passed, ratio)
            codes = _codes(ratio, ends, rounding)
            inside = torch.dot(passed, codes)
            parts = [inside - real, torch.dot(grad, codes) - inside]
            sums.append(torch.stack([*parts, grad.sum() - passed.sum()] if below_too else parts))
    if not sums:
        return _in_one(upstream, x, scale, ends, rounding)
    within, coded, *both = torch.stack(sums).sum(0, dtype=torch.float64)
    above = (coded - ends[0] * both[0]) / (ends[1] - ends[0]) if both else coded / ends[1]
    below = both[0] - above if both else torch.zeros_like(above)
    return found, within.to(torch.float32), above.to(torch.float32), below.to(torch.float32)


def _codes(ratio: Tensor, ends: Sequence[Tensor], rounding: Rounding) -> Tensor:
    """The codes of ratios, which they overwrite."""
    return kernel.settle(ratio, ends[0].item(), ends[1].item(), rounding)


def _in_blocks(
    upstream: Tensor, x: Tensor, scale: Tensor, ends: Sequence[Tensor], found: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """For each block of numbers in the cache: the upstream gradient, what of it passes, which is written into `found`,
    and the ratios, which may be overwritten; in rows where the scale has several numbers. None at all where there is no
    use in blocks.
    """
    if upstream.stride() != x.stride():
        upstream = torch.empty_like(x).copy_(upstream)
    shape = rows_of(scale, x, upstream, found)
    if shape is None:
        return
    low, high = ends[2].item(), ends[3].item()
    mask = torch.ops.aten.hardtanh_backward.grad_input
    ratio = torch.empty(0)
    for step, grad, value, passed in blocks(*shape, scale, upstream, x, found):
        if ratio.shape != value.shape:  # in the first block, and in the last
            ratio = torch.empty(value.shape)
        torch.div(value, step, out=ratio)  # as in the forward pass: a range often begins with an extreme at its end
        mask(grad, ratio, low, high, grad_input=passed)
        yield grad, passed, ratio


def _in_one(
    upstream: Tensor, x: Tensor, scale: Tensor, ends: Sequence[Tensor], rounding: Rounding
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`backward_apart` in one piece, for any device and any scale."""
    lower, upper, low, high = ends
    ratio = x / scale
    codes = torch.clamp(round_to_integer(ratio, rounding), lower, upper)
    inside = upstream * ((ratio > low) & (ratio < high))
    outside = upstream - inside
    above = outside * (ratio > (low + high) / 2)
    parts = inside * (codes - ratio), above, outside - above
    sums = (part.sum(dtype=torch.float64) if scale.dim() == 0 else part.sum_to_size(scale.shape) for part in parts)
    within, over, under = (value.to(torch.float32) for value in sums)
    return inside, within, over, under
