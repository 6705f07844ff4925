"""Max pooling on codes, for which PyTorch has no kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeq.modules.torch_class import torch_class


@dataclass
class MaxPoolCodes:
    """`nn.MaxPool1d`, 2d or 3d of any integer tensor: the maximum along one dimension after the other."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool

    @classmethod
    def of_module(cls, module: nn.Module) -> MaxPoolCodes | None:
        """The same pooling; None for a module that is no max pooling with windows, or that gives indices too."""
        kinds: dict[type[nn.Module], int] = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}
        if torch_class(module) not in kinds or module.return_indices:
            return None
        names = ("kernel_size", "stride", "padding", "dilation")
        sizes = {name: _each(getattr(module, name), kinds[torch_class(module)]) for name in names}
        return cls(**sizes, ceil_mode=bool(module.ceil_mode))

    def __call__(self, codes: Tensor) -> Tensor:
        axes = range(codes.dim() - len(self.kernel_size), codes.dim())
        for axis, size, stride, padding, dilation in zip(
            axes, self.kernel_size, self.stride, self.padding, self.dilation, strict=True
        ):
            codes = _along(codes, axis, size, stride, padding, dilation, self.ceil_mode)
        return codes


def _each(value: Any, count: int) -> tuple[int, ...]:
    return (int(value),) * count if isinstance(value, int) else tuple(int(item) for item in value)


def _along(codes: Tensor, axis: int, size: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> Tensor:
    length, reach = codes.shape[axis], dilation * (size - 1) + 1
    count = (length + 2 * padding - reach + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= length + padding:
        count -= 1  # a window must begin in the tensor or in the padding before it
    beyond = max(0, (count - 1) * stride + reach - length - padding)
    if padding or beyond:
        ends = [0, 0] * (codes.dim() - 1 - axis) + [padding, beyond]
        codes = functional.pad(codes, ends, value=torch.iinfo(codes.dtype).min)
    span = (count - 1) * stride + 1
    windows = (codes.narrow(axis, start, span) for start in range(0, reach, dilation))
    strided = [
        window if stride == 1 else window[(slice(None),) * axis + (slice(None, None, stride),)] for window in windows
    ]
    largest = strided[0]
    for window in strided[1:]:
        largest = torch.maximum(largest, window)
    return largest if len(strided) > 1 else largest.clone(memory_format=torch.preserve_format)
