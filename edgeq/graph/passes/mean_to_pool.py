"""A mean over all positions of a map is a global average pool."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.nn import functional

from edgeq.graph.passes.draft import Draft
from edgeq.graph.passes.registry import Stage, rewrite

POOLS: dict[int, Any] = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}


@rewrite("mean_to_pool", Stage.REPLACE, "a mean over all positions -> a global average pool")
def mean_to_pool(draft: Draft) -> None:
    """``x.mean((2, 3))``, and every other way to say so, ``x.mean(3).mean(2)`` among them, becomes an average pool to
    one position, flattened unless the dimensions are kept. The graph or the example inputs must tell how many
    dimensions x has.
    """
    for node in draft.nodes():
        if draft.kind(node) != "mean" or not draft.is_quantized(node):
            continue
        means = _means(draft, node)
        source: Any = means[0].args[0] if means else None
        rank = None if source is None else draft.ranks[source]
        if rank not in (3, 4, 5) or (rank == 3 and not _is_signal(draft, source)):
            continue
        reduced = _reduced(means, rank)
        if reduced is None or reduced[0] != set(range(2, rank)):
            continue
        _pool(draft, source, means, rank, reduced[1])


def _is_signal(draft: Draft, node: fx.Node) -> bool:
    """Whether a value of three dimensions has its positions last, as opposed to a sequence of features."""
    channels = draft.ranks.channels(node)
    return channels is not None and channels[1] == -2


def _pool(draft: Draft, source: fx.Node, means: list[fx.Node], rank: int, keepdim: bool) -> None:
    node = means[-1]
    x = draft.sample(2, 3, *(5, 7, 4)[: rank - 2])
    before = draft.value(node, {source: x})
    draft.retarget(node, POOLS[rank - 2], (source, 1))
    value = node
    if not keepdim:  # from the last, so that a map without a batch dimension is right as well
        readers = list(node.users)
        value = draft.insert(node, node, torch.flatten, (node, 1 - rank), f"{node.name}_flat")
        for reader in readers:
            reader.replace_input_with(node, value)
    dims = tuple(range(2, rank))
    what = f"the mean over dimensions {dims} -> a global average pool"
    draft.record(node, what, before, draft.value(value, {source: x}))
    draft.erase(reversed(means[:-1]))


def _means(draft: Draft, node: fx.Node) -> list[fx.Node]:
    """Consecutive means that end in `node`; none if another one follows, which is then looked at with it."""
    reader = draft.reader(node)
    if reader is not None and draft.kind(reader) == "mean" and draft.gives_way(node, reader):
        return []
    means = [node]
    while _arguments(means[0]) is not None:
        source: Any = means[0].args[0]
        single = isinstance(source, fx.Node) and draft.reader(source) is means[0] and draft.kind(source) == "mean"
        if not single or not draft.gives_way(source, node):
            return means
        means.insert(0, source)
    return []


def _reduced(means: list[fx.Node], rank: int) -> tuple[set[int], bool] | None:
    """The dimensions that are gone after all means, and whether they are kept as ones."""
    left, gone = list(range(rank)), set()
    keeps = set()
    for mean in means:
        dims, keepdim = _arguments(mean) or ((), False)
        size = rank if keepdim else len(left)
        places = [dim % size for dim in dims if -size <= dim < size]
        if not places or len(places) < len(dims):
            return None
        found = set(places) if keepdim else {left[place] for place in places}
        gone |= found
        left = left if keepdim else [dim for dim in left if dim not in found]
        keeps.add(keepdim)
    return (gone, keeps.pop()) if len(keeps) == 1 else None


def _arguments(node: fx.Node) -> tuple[tuple[int, ...], bool] | None:
    """The dimensions, and whether they are kept; None for a mean of everything, of another type, or into a tensor."""
    values = dict(zip(("input", "dim", "keepdim"), node.args, strict=False))
    names = {"axis": "dim", "keepdims": "keepdim"}
    values |= {names.get(name, name): value for name, value in node.kwargs.items()}
    dims: Any = values.pop("dim", None)
    keepdim = values.pop("keepdim", False)
    if len(node.args) > 3 or values.pop("dtype", None) is not None or set(values) != {"input"}:
        return None
    dims = (dims,) if type(dims) is int else dims
    plain = isinstance(dims, tuple | list) and dims and all(type(dim) is int for dim in dims)
    return (tuple(dims), keepdim) if plain and isinstance(keepdim, bool) else None
