"""Tables whose rows are looked up, kept as integers.

The granularity of the weight's spec decides what a look-up gives. With one scale for the table it moves codes:
what comes out has the range of the table, and nothing is rounded twice (`TableQuantizer`). With one scale a row, so
that a row of great numbers does not coarsen the others, the rows that were looked up are dequantized, and quantized
again with the range that their tensor has (`QuantizedEmbedding`). Bags of rows are always reduced in float.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeq.errors import CalibrationError, ExportError
from edgeq.modules.float32_state import Float32State
from edgeq.modules.layers import Owner
from edgeq.modules.qdq import exporting
from edgeq.modules.stored import StoredWeights
from edgeq.observers.measuring import measuring
from edgeq.phase import Phase
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.spec import Method, TensorSpec


class TableQuantizer(TensorQuantizer):
    """Quantizes what is looked up in a table as the whole table is: the codes of a row are moved, not made anew. The
    range is that of the table as it stands; it is there before any calibration, and training follows the table.
    """

    def __init__(self, name: str, spec: TensorSpec, observer: Method, owner: Owner) -> None:
        super().__init__(name, spec, None)
        self.owner = owner
        self.measure = measuring(spec, observer).measure
        self.refresh()

    @property
    def table(self) -> Tensor:
        """The owner's, as it is now; (rows, features)."""
        return self.owner.weight_now

    def forward(self, x: Any, floor: float | None = None, ceiling: float | None = None, fresh: bool = False) -> Any:
        """Rows of the table, as the phase wants them."""
        if self.phase is Phase.ADAPT:
            self.refresh()
        return super().forward(x, floor, ceiling, fresh)

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes the range anew from the table."""
        for key, value in self._parameters_of(*self.measure(self.table))._asdict().items():
            getattr(self, key).copy_(value)

    def finish(self) -> None:
        """Takes the range for good. Raises CalibrationError for a table that holds NaN or infinity."""
        if not bool(torch.isfinite(self.table).all()):
            raise CalibrationError(f"The table that {self.name!r} looks up rows in holds NaN or infinity.")
        self.refresh()


@dataclass(frozen=True)
class Bags:
    """How rows are put together, as `nn.EmbeddingBag` does it."""

    mode: str = "mean"
    padding_idx: int | None = None
    include_last_offset: bool = False

    def __call__(
        self, rows: Callable[[Tensor], Tensor], indices: Tensor, offsets: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        """The bags (bags, features) of `indices`, (bags, length) or (n,) with the `offsets` (bags,) at which each
        begins. `rows` gives the rows of indices, `weights` is what each is multiplied with.
        """
        picked = rows(indices)
        used = None if self.padding_idx is None else indices != self.padding_idx
        if offsets is None:
            return self._of_equal_length(picked, used, weights)
        if exporting():
            raise ExportError(
                "An EmbeddingBag with offsets cannot be exported: the length of its bags is data. Give it indices of "
                "shape (bags, length), filled up with padding_idx."
            )
        places = torch.arange(len(indices), device=indices.device)
        if used is not None:  # a row of zeros, which counts for nothing, in front
            picked = torch.cat([picked.new_zeros(1, picked.shape[1]), picked])
            places = torch.where(used, places + 1, 0)
        return functional.embedding_bag(
            places,
            picked,
            offsets,
            mode=self.mode,
            per_sample_weights=weights,
            include_last_offset=self.include_last_offset,
            padding_idx=None if used is None else 0,
        )

    def _of_equal_length(self, picked: Tensor, used: Tensor | None, weights: Tensor | None) -> Tensor:
        if self.mode == "max":
            return picked.amax(1) if used is None else _greatest(picked, used.unsqueeze(-1))
        if used is not None:
            picked = picked * used.unsqueeze(-1)
        if weights is not None:
            picked = picked * weights.unsqueeze(-1)
        if self.mode == "sum":
            return picked.sum(1)
        return picked.mean(1) if used is None else picked.sum(1) / used.sum(1, keepdim=True).clamp(min=1)


def _greatest(picked: Tensor, used: Tensor) -> Tensor:
    """The maximum over the rows of a bag that are used; zero without any."""
    greatest = torch.where(used, picked, torch.finfo(picked.dtype).min).amax(1)
    return torch.where(used.any(1), greatest, 0.0)


class QuantizedTable(StoredWeights):
    """What the quantized forms of `nn.Embedding` and `nn.EmbeddingBag` have in common. Only the rows that are looked
    up are rounded.
    """

    weight: Tensor
    padding_idx: int | None
    scale_grad_by_freq: bool
    sparse: bool

    def rows(self, indices: Tensor) -> Tensor:
        """The rows of indices, as their codes keep them."""
        quantizer, weight = self.quantizer_of("weight"), self.weight
        if exporting():
            return functional.embedding(indices, self.stored("weight"))
        options = self.padding_idx, None, 2.0, self.scale_grad_by_freq, self.sparse
        if quantizer.scheme is not None and quantizer.scheme.changes_weights:  # by numbers of the whole table
            return functional.embedding(indices, self.stored("weight"), *options)
        return quantizer.rows(functional.embedding(indices, weight, *options), indices, weight.numel())


class QuantizedEmbedding(QuantizedTable, nn.Embedding):
    """`nn.Embedding` with a quantized table."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """The rows (*, features) of the indices `input` (*)."""
        if self.is_float:
            return super().forward(input)
        self._adapt()
        return self.rows(input)

    def converted(self) -> nn.Module:
        """The table as integers."""
        return IntegerEmbedding(*self.codes("weight"))


class QuantizedEmbeddingBag(QuantizedTable, nn.EmbeddingBag):
    """`nn.EmbeddingBag` with a quantized table."""

    def forward(
        self,
        input: Tensor,  # noqa: A002 - PyTorch's name
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """The bags of rows, (bags, features)."""
        if self.is_float:
            return super().forward(input, offsets, per_sample_weights)
        self._adapt()
        return self._bags(self.rows, input, offsets, per_sample_weights)

    @property
    def _bags(self) -> Bags:
        return Bags(self.mode, self.padding_idx, self.include_last_offset)

    def converted(self) -> nn.Module:
        """The table as integers."""
        return IntegerEmbeddingBag(*self.codes("weight"), self._bags)


class Reference:
    """Mixin for a table that belongs to another module, which `torch.nn.functional` is called with. It adds no key
    for that.
    """

    owner: Owner

    @property
    def weight(self) -> Tensor:
        """The owner's, as it is now."""
        return self.owner.weight_now


class TableReference(Reference, nn.Embedding):  # type: ignore[misc, override]
    """A call of `torch.nn.functional.embedding` in float."""


class EmbeddingReference(Reference, QuantizedEmbedding):  # type: ignore[misc, override]
    """A call of `torch.nn.functional.embedding` with a quantized table."""


class EmbeddingBagReference(Reference, QuantizedEmbeddingBag):  # type: ignore[misc, override]
    """A call of `torch.nn.functional.embedding_bag` with a quantized table."""


CALL_ARGUMENTS = ("input", "offsets", "per_sample_weights")  # those that the module form is called with


def reference(node: Any, owner: Owner, moves_codes: bool) -> tuple[nn.Module, tuple[Any, ...]]:
    """The module that stands for a functional look-up, and the arguments to call it with. One that `moves_codes` has a
    `TableQuantizer` behind it.
    """
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    kind: type[Any] = EmbeddingBagReference
    if node.target is functional.embedding:
        kind = TableReference if moves_codes else EmbeddingReference
    module = object.__new__(kind)  # without a table of its own
    nn.Module.__init__(module)
    module.owner = owner
    for name, value in bound.arguments.items():
        if name not in (*CALL_ARGUMENTS, "weight"):
            setattr(module, name, value)
    return module, tuple(bound.arguments[name] for name in CALL_ARGUMENTS if name in bound.arguments)


class IntegerEmbedding(Float32State):
    """A table of integers. Buffers: `weight`, int8, (rows, features); `weight_scale`, () or (rows, 1)."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, weight: Tensor, weight_scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale.unsqueeze(1) if weight_scale.dim() else weight_scale)

    def forward(self, indices: Tensor) -> Tensor:
        """The rows, as real numbers."""
        return self.rows(indices)

    def rows(self, indices: Tensor) -> Tensor:
        """The rows of indices. An exporter reads the same: it is quicker than to dequantize the table first."""
        codes, scale = functional.embedding(indices, self.weight).to(torch.float32), self.weight_scale
        return codes * (functional.embedding(indices, scale) if scale.dim() else scale)

    def extra_repr(self) -> str:
        return f"table {tuple(self.weight.shape)}"


class IntegerEmbeddingBag(IntegerEmbedding):
    """A table of integers, whose rows are put together in float."""

    def __init__(self, weight: Tensor, weight_scale: Tensor, bags: Bags) -> None:
        super().__init__(weight, weight_scale)
        self.bags = bags

    def forward(  # type: ignore[override]
        self, indices: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """The bags, as real numbers."""
        return self.bags(self.rows, indices, offsets, per_sample_weights)
