"""A bounded sample of the inputs that a calibration saw, to run them once more when the ranges are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

SAMPLES = 64
ELEMENTS = 1 << 23  # 32 MiB of float32


class InputBank:
    """Keeps single samples, evenly spread over all batches, in constant memory and without randomness.

    Every `stride`-th sample is taken; when the bank is full every second one is dropped and the stride doubles.
    A call whose tensors do not share their first dimension counts as one sample.
    """

    def __init__(self) -> None:
        self.samples: list[Any] = []
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.samples.clear()
        self.steps = 0  # calls seen
        self._seen = 0  # samples seen
        self._stride = 1

    def add(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes in the arguments of one call."""
        self.steps += 1
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        sizes = {tensor.shape[0] if tensor.dim() else None for tensor in tensors}
        batch = sizes.pop() if len(sizes) == 1 else None
        for index in range(batch or 1):
            if (self._seen + index) % self._stride == 0:
                part = slice(index, index + 1) if batch else slice(None)
                kept = [
                    leaf.detach()[part].clone() if isinstance(leaf, Tensor) and leaf.dim() else leaf for leaf in leaves
                ]
                self.samples.append(pytree.tree_unflatten(kept, structure))
                self._thin(sum(leaf.numel() for leaf in kept if isinstance(leaf, Tensor)))
        self._seen += batch or 1

    def _thin(self, elements: int) -> None:
        while len(self.samples) > 1 and (len(self.samples) > SAMPLES or len(self.samples) * elements > ELEMENTS):
            self.samples = self.samples[::2]
            self._stride *= 2

    def batches(self) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The samples as calls: one call with all of them where they can be joined, else one a sample."""
        flat = [pytree.tree_flatten(sample) for sample in self.samples]
        shapes = {tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves) for leaves, _ in flat}
        if len(shapes) > 1:
            return [pytree.tree_unflatten(leaves, structure) for leaves, structure in flat]
        columns = zip(*(leaves for leaves, _ in flat), strict=True)
        joined = [
            torch.cat(column) if isinstance(column[0], Tensor) and column[0].dim() else column[0] for column in columns
        ]
        return [pytree.tree_unflatten(joined, flat[0][1])]
