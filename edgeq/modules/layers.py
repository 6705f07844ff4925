"""The quantized layers, one for each float class: subclasses, so that a user's `isinstance` still holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgeq.modules.computed_parameter import ComputedParameter
from edgeq.modules.layer import QuantizedLayer


class QuantizedConv1d(QuantizedLayer, nn.Conv1d):
    """`nn.Conv1d` with quantized weight, bias and output."""


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """`nn.Conv2d` with quantized weight, bias and output."""


class QuantizedConv3d(QuantizedLayer, nn.Conv3d):
    """`nn.Conv3d` with quantized weight, bias and output."""


class QuantizedConvTranspose1d(QuantizedLayer, nn.ConvTranspose1d):  # type: ignore[misc]
    """`nn.ConvTranspose1d` with quantized weight, bias and output."""


class QuantizedConvTranspose2d(QuantizedLayer, nn.ConvTranspose2d):  # type: ignore[misc]
    """`nn.ConvTranspose2d` with quantized weight, bias and output."""


class QuantizedConvTranspose3d(QuantizedLayer, nn.ConvTranspose3d):  # type: ignore[misc]
    """`nn.ConvTranspose3d` with quantized weight, bias and output."""


class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc]
    """`nn.Linear` with quantized weight, bias and output."""


@dataclass
class Owner:
    """The module, not owned here, whose attribute is a layer's weight, and the one whose attribute is its bias.
    `rows` are the ones that the layer has of an attribute that several share. A weight that is `transposed` is laid
    out (inputs, outputs).
    """

    module: nn.Module
    weight: str
    bias_module: nn.Module
    bias: str | None
    rows: slice | None = None
    bias_rows: slice | None = None
    transposed: bool = False

    @property
    def weight_now(self) -> Tensor:
        """The weight as it is at this moment."""
        whole = getattr(self.module, self.weight)
        whole = whole if self.rows is None else whole[self.rows]
        return whole.t() if self.transposed else whole


class QuantizedReference(QuantizedLayer):
    """A layer whose parameters belong to another module: a call such as `torch.nn.functional.conv2d` with a
    user's attributes, or a further call of a layer that is called more than once. It adds no key for them.
    """

    owner: Owner

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The owner's, as it is now."""
        return self.owner.weight_now

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The owner's, as it is now; None without one."""
        whole = None if self.owner.bias is None else getattr(self.owner.bias_module, self.owner.bias)
        return whole if whole is None or self.owner.bias_rows is None else whole[self.owner.bias_rows]

    @property
    def deployed_bias(self) -> Tensor | None:
        """None as well for a bias that is computed: what would be added to it is forgotten at the next look."""
        is_computed = isinstance(self.owner.bias_module, ComputedParameter)
        return None if is_computed and self.site.norm is None else super().deployed_bias


QUANTIZED: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
    nn.ConvTranspose1d: QuantizedConvTranspose1d,
    nn.ConvTranspose2d: QuantizedConvTranspose2d,
    nn.ConvTranspose3d: QuantizedConvTranspose3d,
    nn.Linear: QuantizedLinear,
}


def shell(module: nn.Module, cls: type[Any] | None = None) -> Any:
    """Another object with the attributes of `module`, and the same parameters and buffers, of class `cls` (by
    default its own): what is done to the one's children, hooks or mode does not reach the other.
    """
    copy = object.__new__(cls or type(module))
    copy.__dict__ = {
        key: value.copy() if isinstance(value, dict | list) else value for key, value in module.__dict__.items()
    }
    return copy
