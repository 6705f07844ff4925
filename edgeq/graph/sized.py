"""Transposed convolutions that are told at each call how large their output is to be."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional

FUNCTIONS: dict[type[nn.Module], Any] = {
    nn.ConvTranspose1d: functional.conv_transpose1d,
    nn.ConvTranspose2d: functional.conv_transpose2d,
    nn.ConvTranspose3d: functional.conv_transpose3d,
}


def is_sized(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of a module is one of those."""
    size = args[1] if len(args) > 1 else kwargs.get("output_size")
    return type(module) in FUNCTIONS and size is not None


def transposed_to_size(module: Any, input: Any, output_size: Any) -> Any:  # noqa: A002 - as PyTorch calls it
    """What the module gives: the largest output that its stride allows, cut off at the size. Output padding adds rows
    behind the others and changes none of those.
    """
    dimensions = len(module.stride)
    largest = tuple(stride - 1 for stride in module.stride)
    options = (module.stride, module.padding, largest, module.groups, module.dilation)
    output = FUNCTIONS[type(module)](input, module.weight, module.bias, *options)
    ends = [output_size[index - dimensions] for index in range(dimensions)]
    return output[(..., *(slice(None, end) for end in ends))]
