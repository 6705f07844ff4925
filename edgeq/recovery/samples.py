"""The samples that a recovery works on, and those that it is judged by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgeq.errors import CalibrationError, SpecError
from edgeq.recovery.bank import Call

HELD_OUT = 8  # one batch of so many is not learned from


class Samples:
    """Calls of a network, cut off after `count` samples.

    `seen` is what steps may learn from; `held` is one batch in eight, by which they are judged. Of a single batch one
    sample in eight is held out, where its tensors share their first dimension.

    Raises CalibrationError where there are no calls, SpecError for a count that is no positive integer.
    """

    def __init__(self, calls: Iterable[Call], count: int) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise SpecError(f"samples must be an integer of at least 1, got {count!r}.")
        calls = list(_taken(calls, count))
        if not calls:
            raise CalibrationError("The loader gave no batch to recover with: pass a list or a DataLoader.")
        for number, call in enumerate(calls):
            if any(bool(tensor.isnan().any()) for tensor in _tensors(call)):
                raise CalibrationError(f"Batch {number} of the loader, counted from 0, holds NaN: look at the data.")
        if len(calls) == 1:
            calls = _divided(calls[0])
        self.held = calls[HELD_OUT - 1 :: HELD_OUT] or calls[-1:]
        held = {id(call) for call in self.held}
        self.seen = [call for call in calls if id(call) not in held] or calls
        self.count = sum(map(size_of, calls))

    @property
    def is_held_apart(self) -> bool:
        """Whether what is judged by is not learned from; a single sample has to do for both."""
        return not any(one is other for one in self.held for other in self.seen)


def calls_of(loader: Iterable[Any]) -> Iterator[Call]:
    """The calls that a loader's batches are: a batch is the network's input, or a tuple or list whose first item is."""
    for batch in loader:
        yield (batch[0] if isinstance(batch, tuple | list) else batch,), {}


def size_of(call: Call) -> int:
    """How many samples a call has: the first dimension that all of its tensors share, else 1."""
    sizes = {tensor.shape[0] if tensor.dim() else 1 for tensor in _tensors(call)}
    return sizes.pop() if len(sizes) == 1 else 1


def _tensors(call: Call) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]


def part_of(call: Call, index: slice | Tensor) -> Call:
    """Some of the samples of a call."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor[index], call)


def _taken(calls: Iterable[Call], count: int) -> Iterator[Call]:
    left = count
    for call in calls:
        size = size_of(call)
        if size == 0:
            continue
        yield call if size <= left else part_of(call, slice(left))
        left -= size
        if left <= 0:
            return


def _divided(call: Call) -> list[Call]:
    size = size_of(call)
    held = torch.arange(size) % HELD_OUT == HELD_OUT - 1
    if size < 2:
        return [call]
    if not held.any():
        held[-1] = True
    return [part_of(call, ~held), part_of(call, held)]
