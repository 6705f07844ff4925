"""A layer with weights that stays in float in a network of integers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeq.modules.operation import Operation


class FloatLayer(nn.Module):
    """A convolution, a transposed convolution or a linear layer on real numbers, its batch norm folded into it.

    Buffers: `weight`, laid out as in the float layer; `bias`, shape (channels,), or None.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, operation: Operation, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.operation = operation
        self.register_buffer("weight", weight.detach().clone(memory_format=torch.contiguous_format))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.operation.function}, weight {tuple(self.weight.shape)}"
