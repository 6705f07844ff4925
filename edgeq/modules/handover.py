"""Codes that one exact layer hands to the next.

Between layers a value is real: whoever hooks or reads it sees the network's own numbers. Where nobody but
exact layers reads it the multiplication by the scale and the division that undoes it are left out: the tensor
is then the centred codes, and carries the quantizer that they belong to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.modules import module as every_module

from edgeq.quantizers import kernel

if TYPE_CHECKING:
    from edgeq.quantizers.tensor import TensorQuantizer

MARK = "edgeq_quantizer"


class HandsOver(nn.Module):
    """A layer that may hand its output over. `readers` are the layers that read it, if nothing else does; the program
    that calls them knows who they are. Copies leave them behind and learn them anew: one leads to the next, and so
    deeper into a network than Python's recursion goes.
    """

    readers: list[Any]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "readers": []}


def nobody_looks(giver: nn.Module, readers: list[nn.Module]) -> bool:
    """Whether `readers`, which are layers, are all that sees what `giver` gives: no others read it, and no hook."""
    if not readers or every_module._global_forward_hooks or every_module._global_forward_pre_hooks:
        return False
    return not (giver._forward_hooks or any(reader._forward_pre_hooks or reader._forward_hooks for reader in readers))


def handed_over(codes: Tensor, quantizer: TensorQuantizer) -> Tensor:
    """Marks centred codes as what they are."""
    setattr(codes, MARK, quantizer)
    return codes


def as_codes(x: Tensor, quantizer: TensorQuantizer) -> Tensor:
    """The centred codes of `x`, which `quantizer` has quantized, whether it comes as real numbers or as codes."""
    return x if hasattr(x, MARK) else kernel.centred_codes(x, quantizer.scale)


def as_real(x: Tensor) -> Tensor:
    """The real numbers of `x`, whether it comes as real numbers or as codes."""
    return x * getattr(x, MARK).scale if hasattr(x, MARK) else x
