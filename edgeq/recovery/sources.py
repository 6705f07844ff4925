"""What gives channels that a layer reads, and how their scale and offset are changed in place: a layer or a norm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from edgeq.modules.layer import QuantizedLayer


class Source(ABC):
    """The channels of one tensor of the network. Its parameters are the user's own, and are written in place."""

    name: str
    channels: int
    channel_axis: int  # counted from the last

    @property
    @abstractmethod
    def written(self) -> list[Tensor]:
        """The tensors that a change of scale or offset writes to."""

    @property
    @abstractmethod
    def obstacle(self) -> str:
        """Why its scale cannot be changed; empty where it can."""

    @abstractmethod
    def divide(self, factors: Tensor) -> None:
        """Divides each channel by a positive number, shape (channels,)."""

    @abstractmethod
    def subtract(self, offsets: Tensor) -> None:
        """Takes a number, shape (channels,), off each channel. There must be something to take it off (`offset`)."""

    @property
    @abstractmethod
    def offset(self) -> Tensor | None:
        """The parameter that a channel's offset is taken off."""


class LayerSource(Source):
    """A layer with weights, its batch norm included. Running statistics stay."""

    def __init__(self, layer: QuantizedLayer) -> None:
        self.layer, self.name = layer, layer.site.name
        self.channels = layer.operation.channels(layer.weight)
        self.channel_axis = layer.operation.channel_axis

    @property
    def written(self) -> list[Tensor]:
        norm = self.layer.site.norm
        tensors = [self.layer.weight, self.layer.bias] if norm is None else [norm.weight, norm.bias]
        return [tensor for tensor in tensors if tensor is not None]

    @property
    def obstacle(self) -> str:
        site = self.layer.site
        if site.norm is not None and (site.norm.weight is None or site.norm.bias is None):
            return "its batch norm has no weight and bias"
        return "a number is added to its output" if site.offset != 0.0 else ""

    def divide(self, factors: Tensor) -> None:
        layer, norm = self.layer, self.layer.site.norm
        if norm is None:
            layer.weight.div_(layer.operation.per_output(factors, layer.weight))
            if layer.bias is not None:
                layer.bias.div_(factors)
        else:
            norm.weight.div_(factors)
            norm.bias.div_(factors)
        layer.bias_shift.div_(factors)

    def subtract(self, offsets: Tensor) -> None:
        assert self.offset is not None
        self.offset.sub_(self.layer.site.unfolded(offsets))

    @property
    def offset(self) -> Tensor | None:
        return self.layer.deployed_bias


class NormSource(Source):
    """A norm that stands alone and ends with a weight for each channel: of a layer norm the last dimension's, of the
    others the first after the batch.
    """

    KINDS = (
        nn.LayerNorm,
        nn.RMSNorm,
        nn.GroupNorm,
        nn.modules.batchnorm._BatchNorm,
        nn.modules.instancenorm._InstanceNorm,
    )

    def __init__(self, norm: Any, name: str, dimensions: int) -> None:
        self.norm, self.name = norm, name
        self.channel_axis = -1 if isinstance(norm, nn.LayerNorm | nn.RMSNorm) else 1 - dimensions
        self.channels = 0 if norm.weight is None else norm.weight.numel()

    @property
    def written(self) -> list[Tensor]:
        return [tensor for tensor in (self.norm.weight, self.offset) if tensor is not None]

    @property
    def obstacle(self) -> str:
        if self.norm.weight is None:
            return "it has no weight"
        return "it runs over several dimensions" if self.norm.weight.dim() > 1 else ""

    def divide(self, factors: Tensor) -> None:
        for tensor in self.written:
            tensor.div_(factors)

    def subtract(self, offsets: Tensor) -> None:
        assert self.offset is not None
        self.offset.sub_(offsets)

    @property
    def offset(self) -> Tensor | None:
        return getattr(self.norm, "bias", None)


@torch.no_grad()
def multiply_inputs(layer: QuantizedLayer, factors: Tensor) -> None:
    """Multiplies what a layer does with each of its input channels by a number, shape (inputs,), in place."""
    layer.weight.mul_(layer.operation.per_input(factors, layer.weight))


@torch.no_grad()
def add_to_inputs(layer: QuantizedLayer, offsets: Tensor) -> None:
    """Lets a layer's bias make good, in place, that each of its input channels is smaller by a number."""
    weight, _ = layer.folded(layer.weight, layer.bias)
    moved = layer.operation.rows(weight * layer.operation.per_input(offsets, weight)).sum(1)
    bias = layer.deployed_bias
    assert bias is not None
    bias.add_(layer.site.unfolded(moved))
