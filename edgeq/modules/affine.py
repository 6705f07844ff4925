"""Multiplication by a number and addition of one."""

from __future__ import annotations

from torch import Tensor, nn


class Affine(nn.Module):
    """``x * factor + offset``, of the same shape. Behind a layer with weights it is folded into them."""

    def __init__(self, factor: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + self.offset

    def extra_repr(self) -> str:
        return f"{self.factor:g}, {self.offset:g}"
