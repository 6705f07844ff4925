"""The float operation of a layer with weights, and how its weight is laid out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

CONVOLUTIONS: dict[type[nn.Module], str] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
}


@dataclass(frozen=True)
class Operation:
    """A function of torch.nn.functional that takes input, weight and bias, with its other arguments.

    `padding_mode` other than "zeros" pads the input by `padding` (the argument of `functional.pad`) first.
    """

    function: str
    options: tuple[tuple[str, Any], ...] = ()
    padding_mode: str = "zeros"
    padding: tuple[int, ...] = ()

    @classmethod
    def of_module(cls, module: Any) -> Operation:
        """The operation of a convolution, a transposed convolution or a linear layer."""
        if isinstance(module, nn.Linear):
            return cls("linear")
        names = ["stride", "padding", "dilation", "groups"]
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            names.append("output_padding")
        options = {name: getattr(module, name) for name in names}
        mode, padding = str(module.padding_mode), ()
        if mode != "zeros":
            padding = tuple(module._reversed_padding_repeated_twice)
            options["padding"] = 0
        function = next(name for kind, name in CONVOLUTIONS.items() if isinstance(module, kind))
        return cls(function, tuple(sorted(options.items())), mode, padding)

    @classmethod
    def of_call(cls, node: Any) -> Operation:
        """The operation of a graph's node that calls a function such as `torch.nn.functional.conv2d`."""
        function = node.target.__name__
        if function == "linear":
            return cls(function)
        names = ["stride", "padding", "dilation", "groups"]
        if function.startswith("conv_transpose"):
            names = ["stride", "padding", "output_padding", "groups", "dilation"]
        defaults = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
        options = {name: defaults[name] for name in names}
        options.update(zip(names, node.args[3:], strict=False))
        options.update({name: value for name, value in node.kwargs.items() if name in names})
        frozen = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in options.items()}
        return cls(function, tuple(sorted(frozen.items())))

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            x = functional.pad(x, self.padding, mode=self.padding_mode)
        function: Callable[..., Tensor] = getattr(functional, self.function)
        return function(x, weight, bias, **dict(self.options))

    @property
    def transposed(self) -> bool:
        """Whether the weight is laid out (inputs, outputs / groups, ...), not (outputs, inputs / groups, ...)."""
        return self.function.startswith("conv_transpose")

    @property
    def weight_axis(self) -> int:
        """The axis of the weight that a scale per channel lies along."""
        return 1 if self.transposed else 0

    @property
    def input_axis(self) -> int:
        """The axis of the weight that input channels (of one group) lie along."""
        return 0 if self.transposed else 1

    @property
    def channel_axis(self) -> int:
        """The axis, counted from the last, of the output that channels and biases lie along."""
        return -1 if self.function == "linear" else -1 - int(self.function[-2])

    @property
    def groups(self) -> int:
        """Groups of channels that do not see each other."""
        return int(dict(self.options).get("groups", 1))

    def channels(self, weight: Tensor) -> int:
        """Number of output channels."""
        return weight.shape[1] * self.groups if self.transposed else weight.shape[0]

    def to_channels(self, scale: Tensor) -> Tensor:
        """A scale for each output channel. The groups of a transposed convolution share theirs, because
        DequantizeLinear has one axis, and that of its weight holds outputs / groups.
        """
        return scale.repeat(self.groups) if self.transposed and self.groups > 1 and scale.dim() else scale

    def of_channels(self, scale: Tensor) -> Tensor:
        """The inverse of `to_channels`: the largest of the scales of the output channels that share one."""
        grouped = self.transposed and self.groups > 1 and scale.dim() > 0
        return scale.reshape(self.groups, -1).amax(0) if grouped else scale

    def rows(self, weight: Tensor) -> Tensor:
        """The weight as a matrix (output channels, inputs that each sees)."""
        if not self.transposed:
            return weight.flatten(1)
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        return grouped.transpose(1, 2).reshape(self.channels(weight), -1)

    def from_rows(self, rows: Tensor, weight: Tensor) -> Tensor:
        """The inverse of `rows`, for a weight of the shape of `weight`."""
        if not self.transposed:
            return rows.reshape(weight.shape)
        inputs = weight.shape[0] // self.groups
        grouped = rows.reshape(self.groups, weight.shape[1], inputs, *weight.shape[2:])
        return grouped.transpose(1, 2).reshape(weight.shape)

    def per_output(self, values: Tensor, weight: Tensor) -> Tensor:
        """`values`, one for each output channel, shape (channels,), so that they broadcast to the weight."""
        tail = [1] * (weight.dim() - 2)
        if not self.transposed:
            return values.reshape(-1, 1, *tail)
        grouped = values.reshape(self.groups, -1).repeat_interleave(weight.shape[0] // self.groups, dim=0)
        return grouped.reshape(*grouped.shape, *tail)

    def per_input(self, values: Tensor, weight: Tensor) -> Tensor:
        """`values`, one for each input channel, shape (channels,), so that they broadcast to the weight."""
        if self.transposed:
            return values.reshape(-1, *[1] * (weight.dim() - 1))
        each = values.reshape(self.groups, -1).repeat_interleave(weight.shape[0] // self.groups, dim=0)
        return each.reshape(*each.shape, *[1] * (weight.dim() - 2))

    def spread(self, values: Tensor, output: Tensor) -> Tensor:
        """`values`, one for each output channel or one for all, so that they broadcast to the output."""
        return values if values.dim() == 0 else values.reshape(-1, *[1] * (-1 - self.channel_axis))
