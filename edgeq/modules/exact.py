"""Integer layers computed exactly with floating-point kernels, wherever those are the quickest exact ones.

Float32 represents every integer below 2**24, and sums and products of integers that stay below it are exact in
any order. So a convolution of codes held as float32 gives the accumulator of integer hardware, on every device
and without its saturations. Where an accumulator might grow larger the sums are made in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from edgeq.arithmetic import LARGEST_EXACT_INTEGER
from edgeq.modules.operation import Operation


class ExactParameters(NamedTuple):
    """A layer's integers, in a floating type, and for each output channel the factor that makes an accumulator a
    code (or, without a quantized output, a real number).

    `parts` are the weight codes for consecutive slices of the input channels, as many as it takes for the sums
    of each to stay exact; usually one.
    """

    parts: tuple[Tensor, ...]
    bias: Tensor | None
    factor: Tensor


def exact_parameters(
    operation: Operation,
    weight: Tensor,
    bias: Tensor | None,
    factor: Tensor,
    lower: Tensor,
    upper: Tensor,
) -> ExactParameters:
    """The parameters of a layer whose inputs lie in lower..upper, centred; weight and bias are integers in a
    floating type. Where the sums of all inputs might leave the exact integers of float32 the input channels are
    taken in parts, or in float64 where groups leave nothing to divide.
    """
    factor = operation.spread(factor, weight)
    weight = weight.to(torch.float32)
    channels = weight.shape[operation.input_axis] if operation.groups == 1 else 1
    for count in range(1, channels + 1):
        parts = weight.tensor_split(count, operation.input_axis)
        largest = max(float(largest_accumulator(operation, part, lower, upper).amax()) for part in parts)
        alone = 0.0 if bias is None or count > 1 else float(bias.abs().amax())
        if largest + alone < LARGEST_EXACT_INTEGER:
            exact_bias = None if bias is None else bias.to(torch.float32 if count == 1 else torch.int32)
            return ExactParameters(tuple(in_fast_layout(part) for part in parts), exact_bias, factor)
    wide = None if bias is None else bias.to(torch.float64)
    return ExactParameters((weight.to(torch.float64),), wide, factor)


def fingerprint(tensors: Iterable[Tensor | None]) -> tuple[tuple[int, int, int], ...]:
    """What changes when one of `tensors` is written to or replaced, for as long as whoever keeps it keeps them
    too: the memory and the id of a tensor that is gone go to the next one. A view, which is made anew at each look
    at it, is known by the tensor that it is a view of.
    """
    return tuple((id(x if x._base is None else x._base), x.data_ptr(), x._version) for x in tensors if x is not None)


def in_fast_layout(weight: Tensor) -> Tensor:
    """The weight in the memory order that convolutions on a CPU are quickest in, which the activations follow."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if weight.dim() not in formats or weight.device.type != "cpu":
        return weight.contiguous()
    return weight.contiguous(memory_format=formats[weight.dim()])


def largest_accumulator(operation: Operation, weight: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """A bound, for each output channel, on every partial sum of products for inputs in lower..upper; float64."""
    rows = operation.rows(weight)
    positive = rows.clamp(min=0).sum(1, dtype=torch.float64)
    negative = rows.sum(1, dtype=torch.float64) - positive
    return torch.maximum(upper * positive + lower * negative, -(lower * positive + upper * negative))


def accumulate(operation: Operation, codes: Tensor, parameters: ExactParameters) -> Tensor:
    """The accumulator, bias included, of centred input codes; float32, as an int32 converted to it would be. Its
    memory lies in one order whatever the kernel: a float mean behind it would round otherwise in another.
    """
    parts, bias, _ = parameters
    if torch.is_autocast_enabled(codes.device.type):
        with torch.autocast(codes.device.type, enabled=False):
            return accumulate(operation, codes, parameters)
    if len(parts) == 1:
        sums = operation(codes.to(parts[0].dtype), parts[0], bias)
        return in_fast_order(operation, round_off_device_noise(sums.to(torch.float32)))
    slices = codes.tensor_split(len(parts), operation.channel_axis)
    partial = [operation(x, weight, None) for x, weight in zip(slices, parts, strict=True)]
    total = torch.stack([round_off_device_noise(part).to(torch.int32) for part in partial]).sum(0, dtype=torch.int32)
    total = total if bias is None else total + operation.spread(bias, total)
    return in_fast_order(operation, total.to(torch.float32))


def in_fast_order(operation: Operation, sums: Tensor) -> Tensor:
    """The sums of a two-dimensional convolution on a CPU with the channels last, as all of its kernels but those
    for few channels leave them.
    """
    if operation.function != "conv2d" or sums.dim() != 4 or sums.device.type != "cpu":
        return sums
    return sums.contiguous(memory_format=torch.channels_last)


def round_off_device_noise(sums: Tensor) -> Tensor:
    """Integer sums as a device's kernel gave them; a Winograd kernel, on a GPU, is off by less than one half."""
    return sums if sums.device.type == "cpu" else sums.round()
