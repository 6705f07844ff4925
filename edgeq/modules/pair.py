"""Sums and products of two tensors of codes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgeq.modules.codes import Codes
from edgeq.modules.qdq import exporting
from edgeq.quantizers import kernel

PAIRED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"add": torch.add, "mul": torch.mul}  # in any order


class IntegerPair(nn.Module):
    """Dequantizes two tensors, combines them and quantizes the result; on a CPU block by block, so that the real
    numbers never leave the cache. `operation` is a name of edgeq's table.
    """

    def __init__(self, operation: str, left: Codes, right: Codes, target: Codes) -> None:
        super().__init__()
        self.operation, self.left, self.right, self.target = operation, left, right, target

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        alike = left.shape == right.shape and left.stride() == right.stride()
        if exporting() or not alike or not kernel.in_blocks(left) or not kernel.is_dense(left):
            real = PAIRED[self.operation](self.left.decode(left), self.right.decode(right))
            return self.target.encode(real)
        codes = torch.empty_like(left, dtype=self.target.zero_point.dtype)
        for a, b, part in kernel.blocks(left, right, codes):
            real = PAIRED[self.operation](self.left.decode(a), self.right.decode(b))
            part.copy_(self.target.encode(real))
        return codes

    def extra_repr(self) -> str:
        return self.operation
