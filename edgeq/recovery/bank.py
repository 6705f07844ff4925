"""A bounded sample of the inputs that a calibration saw, to run them once more when the ranges are known."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

from torch import Tensor, cat
from torch.utils import _pytree as pytree

SAMPLES = 64
ELEMENTS = 1 << 23  # 32 MiB of float32

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Sample(NamedTuple):
    """A call, and whether it is one sample of a batch, which others can be joined to."""

    call: Call
    is_slice: bool


class InputBank:
    """Keeps single samples, evenly spread over all batches, in constant memory and without randomness.

    Every `stride`-th sample is taken; when the bank is full every second one is dropped and the stride doubles.
    A call counts as one sample, and is kept whole, unless all of its tensors and of its result's share their
    first dimension: only then is that the batch.
    """

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.samples.clear()
        self.steps = 0  # calls seen
        self._seen = 0  # samples seen
        self._stride = 1

    def add(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Takes in the arguments of one call and what came of it. One without any value counts for nothing."""
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if all(tensor.numel() == 0 for tensor in tensors):
            return
        self.steps += 1
        results = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        sizes = {tensor.shape[0] if tensor.dim() else None for tensor in tensors + results}
        batch = sizes.pop() if len(sizes) == 1 else None
        for index in range(batch or 1):
            if (self._seen + index) % self._stride == 0:
                part = slice(index, index + 1) if batch else ...
                kept = [leaf.detach()[part].clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
                self.samples.append(Sample(pytree.tree_unflatten(kept, structure), batch is not None))
                self._thin(sum(leaf.numel() for leaf in kept if isinstance(leaf, Tensor)))
        self._seen += batch or 1

    def _thin(self, elements: int) -> None:
        while len(self.samples) > 1 and (len(self.samples) > SAMPLES or len(self.samples) * elements > ELEMENTS):
            self.samples = self.samples[::2]
            self._stride *= 2

    def batches(self) -> list[Call]:
        """The samples as calls: one call with all of them where they can be joined, else one a sample."""
        flat = [pytree.tree_flatten(sample.call) for sample in self.samples]
        forms = {(structure, *map(_form, leaves)) for leaves, structure in flat}
        if len(forms) > 1 or not all(sample.is_slice for sample in self.samples):
            return [sample.call for sample in self.samples]
        columns = zip(*(leaves for leaves, _ in flat), strict=True)
        joined = [cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
        return [pytree.tree_unflatten(joined, flat[0][1])]


def _form(leaf: Any) -> Hashable:
    """What two arguments must have in common for a call with both of them to be joined."""
    if isinstance(leaf, Tensor):
        return leaf.shape
    return leaf if isinstance(leaf, Hashable) else id(leaf)
