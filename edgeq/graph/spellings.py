"""Other names for what the table of operators has: written in its terms, so that they are quantized the same way."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from edgeq.graph.decompose import decomposes, replaces

Value = Any  # a proxy of a tensor


class Extremes(NamedTuple):
    """What torch.max and torch.min give along a dimension."""

    values: Value
    indices: Value


@replaces(torch.square, methods=("square",))
def square(input: Value) -> Value:  # noqa: A002
    """A product of two tensors of codes."""
    return input * input


@replaces(torch.pow, operator.pow, methods=("pow",))
def power(input: Value, exponent: Any) -> Value:  # noqa: A002
    """``x ** 2`` is a product; any other power is a function of its own."""
    is_square = isinstance(exponent, int | float) and exponent == 2 and not isinstance(input, int | float)
    return square(input) if is_square else NotImplemented


@replaces(torch.addcmul, methods=("addcmul",))
def add_product(input: Value, tensor1: Value, tensor2: Value, *, value: Any = 1) -> Value:  # noqa: A002
    """``input + value * tensor1 * tensor2``."""
    product = tensor1 * tensor2
    return input + (product if isinstance(value, int | float) and value == 1 else product * value)


@replaces(torch.addcdiv, methods=("addcdiv",))
def add_quotient(input: Value, tensor1: Value, tensor2: Value, *, value: Any = 1) -> Value:  # noqa: A002
    """``input + value * tensor1 / tensor2``."""
    quotient = tensor1 / tensor2
    return input + (quotient if isinstance(value, int | float) and value == 1 else quotient * value)


@replaces(functional.glu)
def glu(input: Value, dim: int = -1) -> Value:  # noqa: A002
    """One half gates the other: each of the three steps has a range."""
    value, gate = torch.chunk(input, 2, dim)[:2]
    return value * torch.sigmoid(gate)


@decomposes(nn.GLU)
def glu_module(module: nn.GLU, input: Value) -> Value:  # noqa: A002
    """As the function."""
    return glu(input, module.dim)


@replaces(torch.max, methods=("max",))
def maximum(input: Value, *args: Any, **kwargs: Any) -> Value:  # noqa: A002
    """Along a dimension, or of all: `amax` picks values, whose codes stay what they are, and `argmax` their places."""
    return _extremes(torch.amax, torch.argmax, input, *args, **kwargs)


@replaces(torch.min, methods=("min",))
def minimum(input: Value, *args: Any, **kwargs: Any) -> Value:  # noqa: A002
    """As the maximum."""
    return _extremes(torch.amin, torch.argmin, input, *args, **kwargs)


def _extremes(values: Any, indices: Any, input: Value, *args: Any, **kwargs: Any) -> Value:  # noqa: A002
    if not args and not kwargs:
        return values(input)
    dim = args[0] if args else kwargs.get("dim")
    keepdim = args[1] if len(args) > 1 else kwargs.get("keepdim", False)
    if not isinstance(dim, int):  # of two tensors
        return NotImplemented
    return Extremes(values(input, dim, keepdim), indices(input, dim, keepdim))


@replaces(methods=("where",))
def where(input: Value, condition: Value, other: Value) -> Value:  # noqa: A002
    """The method takes its arguments in another order than the function."""
    return torch.where(condition, input, other)


@replaces(torch.fmax, methods=("fmax",))
def fmax(input: Value, other: Value) -> Value:  # noqa: A002
    """They differ only where there is NaN, for which there is no code."""
    return torch.maximum(input, other)


@replaces(torch.fmin, methods=("fmin",))
def fmin(input: Value, other: Value) -> Value:  # noqa: A002
    """As above."""
    return torch.minimum(input, other)


@replaces(torch.ravel, methods=("ravel",))
def ravel(input: Value) -> Value:  # noqa: A002
    """One dimension of all."""
    return input.flatten()


@replaces(torch.adjoint, methods=("adjoint",))
def adjoint(input: Value) -> Value:  # noqa: A002
    """Real numbers have no other conjugate."""
    return input.transpose(-2, -1)


@replaces(torch.narrow_copy, methods=("narrow_copy",))
def narrow_copy(input: Value, dim: int, start: Any, length: Any) -> Value:  # noqa: A002
    """Nothing works in place, so a view is as good."""
    return input.narrow(dim, start, length)


@replaces(torch.fliplr, methods=("fliplr",))
def fliplr(input: Value) -> Value:  # noqa: A002
    """Along the second dimension."""
    return input.flip(1)


@replaces(torch.flipud, methods=("flipud",))
def flipud(input: Value) -> Value:  # noqa: A002
    """Along the first dimension."""
    return input.flip(0)


@replaces(torch.rot90, methods=("rot90",))
def rot90(input: Value, k: int = 1, dims: Any = (0, 1)) -> Value:  # noqa: A002
    """Quarter turns are flips, and a transposition for every odd one."""
    first, second = dims
    flipped = ((), (second,), (first, second), (first,))[k % 4]
    turned = input.flip(flipped) if flipped else input
    return turned.transpose(first, second) if k % 2 else turned


@replaces(torch.channel_shuffle, torch.native_channel_shuffle)
def channel_shuffle(input: Value, groups: int) -> Value:  # noqa: A002
    """Channels as a table of groups, read by columns."""
    return input.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


@decomposes(nn.ChannelShuffle)
def channel_shuffle_module(module: nn.ChannelShuffle, input: Value) -> Value:  # noqa: A002
    """As the function."""
    return channel_shuffle(input, module.groups)
