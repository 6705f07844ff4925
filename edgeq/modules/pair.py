"""Sums and products of two tensors of codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgeq.arithmetic import Rounding
from edgeq.modules.codes import Codes
from edgeq.modules.exact import fingerprint
from edgeq.modules.qdq import exporting
from edgeq.quantizers import kernel

PAIRED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"add": torch.add, "mul": torch.mul}  # in any order


class IntegerPair(nn.Module):
    """Dequantizes two tensors, combines them and quantizes the result. `operation` is a name of edgeq's table.

    On a CPU a shorter way, with one factor for each operand or one for both, is taken where it gives the same code for
    every pair of codes, which is tried out on all of them once.
    """

    def __init__(self, operation: str, left: Codes, right: Codes, target: Codes) -> None:
        super().__init__()
        self.operation, self.left, self.right, self.target = operation, left, right, target
        self._cache: tuple[Any, list[Tensor], ShortWay | None] | None = None

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        alike = left.shape == right.shape and left.stride() == right.stride()
        if exporting() or not alike or not kernel.in_blocks(left) or not kernel.is_dense(left):
            return self._as_defined(left, right)
        short = self._short_way()
        if short is None:
            return self._as_defined(left, right)
        codes = torch.empty_like(left, dtype=self.target.zero_point.dtype)
        scratch = torch.empty(2, min(left.numel(), kernel.BLOCK) if torch.get_num_threads() == 1 else left.numel())
        for a, b, part in kernel.blocks(left, right, codes):
            short.write(a, b, scratch[:, : a.numel()], part)
        return codes

    def _as_defined(self, left: Tensor, right: Tensor) -> Tensor:
        return self.target.encode(PAIRED[self.operation](self.left.decode(left), self.right.decode(right)))

    def _short_way(self) -> ShortWay | None:
        """The shorter way if it is exact, tried anew when a scale or a zero point changes."""
        three = (self.left, self.right, self.target)
        inputs = [tensor for codes in three for tensor in (codes.scale, codes.zero_point)]
        key = fingerprint(inputs)
        if self._cache is None or self._cache[0] != key:
            short = ShortWay(self.operation, *three)
            a, b = every_code(self.left).repeat_interleave(256), every_code(self.right).repeat(256)
            found = torch.empty_like(a, dtype=self.target.zero_point.dtype)
            short.write(a, b, torch.empty(2, a.numel()), found)
            exact = self.target.rounding is Rounding.HALF_EVEN and torch.equal(found, self._as_defined(a, b))
            self._cache = key, inputs, short if exact else None
        return self._cache[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    def extra_repr(self) -> str:
        return self.operation


class ShortWay:
    """``a * s_a/s + b * s_b/s + c``, or ``(a - z_a) * (b - z_b) * f``, on codes a and b; no fused multiply-add, which
    would round the last elements of a block otherwise than the first.
    """

    def __init__(self, operation: str, left: Codes, right: Codes, target: Codes) -> None:
        self.is_sum, self.target, self.zero = operation == "add", target, int(target.zero_point)
        self.zeros = int(left.zero_point), int(right.zero_point)
        self.factors = float(left.scale / target.scale), float(right.scale / target.scale)
        self.factor = float(left.scale * right.scale / target.scale)

    def write(self, left: Tensor, right: Tensor, scratch: Tensor, codes: Tensor) -> None:
        """Writes the codes of one block; `scratch`, float32, shape (2, elements), is overwritten."""
        a, b = scratch[0].copy_(left), scratch[1].copy_(right)
        if self.is_sum:
            (first, second), (z_a, z_b) = self.factors, self.zeros
            real = a.mul_(first).add_(b.mul_(second))
            if z_a or z_b:
                real.sub_(first * z_a + second * z_b)
        else:
            real = a.sub_(self.zeros[0]).mul_(b.sub_(self.zeros[1])).mul_(self.factor)
        target = self.target
        kernel.store(real, self.zero, target.low, target.high, target.rounding, codes)


def every_code(codes: Codes) -> Tensor:
    """All values of the type of the codes."""
    limits = torch.iinfo(codes.zero_point.dtype)
    return torch.arange(limits.min, limits.max + 1).to(codes.zero_point.dtype)
