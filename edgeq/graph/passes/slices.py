"""Slices of slices, and slices that together are all of a tensor."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from edgeq.graph.passes.draft import Draft
from edgeq.graph.passes.registry import Stage, rewrite

EVERYTHING = slice(None)


@rewrite("slice_merging", Stage.TIDY, "a slice of a slice -> one slice")
def slice_merging(draft: Draft) -> None:
    """``x[:, 2:][:, :4, ::2]`` becomes ``x[:, 2:6, ::2]``. Where the inner one has no other reader, and no bound that
    counts from the end has to be put together with another one.
    """
    for node in draft.nodes():
        inner: Any = node.args[0] if is_slice(node) else None
        if not isinstance(inner, fx.Node) or not is_slice(inner) or draft.reader(inner) is not node:
            continue
        merged = _merged(_index(inner), _index(node))
        if merged is None or not draft.gives_way(inner, node):
            continue
        source: Any = inner.args[0]
        x = draft.sample(*(12,) * len(merged))
        before = draft.value(node, {source: x})
        node.args = (source, merged)
        draft.record(node, f"slices {_text(_index(inner))} and then another -> {_text(merged)}", before, x[merged])
        draft.erase([inner])


@rewrite("slices_to_split", Stage.TIDY, "slices that together are a tensor -> one split")
def slices_to_split(draft: Draft) -> None:
    """``x[:, :4]``, ``x[:, 4:]`` become the parts of a split, where x has the channels that a layer gave it and the
    slices are all of them, one after the other.
    """
    for source in draft.nodes():
        slices = [user for user in source.users if is_slice(user)]
        if len(slices) < 2 or not all(draft.gives_way(node, slices[0]) for node in slices):
            continue
        found = draft.ranks.channels(source)
        if found is None:
            continue
        size, axis = found
        rank = draft.ranks[source]
        parts = {node: _part(_index(node), axis, rank) for node in slices}
        ends = {node: part.indices(size)[:2] for node, part in parts.items() if part is not None}
        ordered = sorted(ends, key=ends.__getitem__)
        edges = [0, *(ends[node][1] for node in ordered)]
        if len(ends) < len(slices) or [ends[node][0] for node in ordered] != edges[:-1] or edges[-1] != size:
            continue
        _split(draft, source, ordered, [stop - start for start, stop in map(ends.__getitem__, ordered)], axis)


def _split(draft: Draft, source: fx.Node, slices: list[fx.Node], sizes: list[int], axis: int) -> None:
    rank = draft.ranks[source] or 4
    x = draft.sample(*(sum(sizes) if dimension == rank + axis else 2 for dimension in range(rank)))
    before = [draft.value(node, {source: x}) for node in slices]
    split = draft.insert(slices[0], source, torch.split, (source, sizes, axis), f"{source.name}_split")
    for number, node in enumerate(slices):
        draft.retarget(node, operator.getitem, (split, number))
    after = [draft.value(node, {source: x}) for node in slices]
    draft.record(slices[0], f"{len(sizes)} slices -> a split into {sizes}", before, after)


def is_slice(node: fx.Node) -> bool:
    """Whether a call takes slices, with bounds that are numbers, of a tensor's dimensions and nothing else."""
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return False
    index = _index(node)
    places = [item for item in index if item is not Ellipsis]
    plain = all(isinstance(item, slice) and _is_plain(item) for item in places)
    return bool(places) and plain and len(index) - len(places) <= 1


def _is_plain(part: slice) -> bool:
    return all(bound is None or type(bound) is int for bound in (part.start, part.stop, part.step))


def _index(node: fx.Node) -> tuple[Any, ...]:
    index = node.args[1]
    return index if isinstance(index, tuple) else (index,)


def _merged(inner: tuple[Any, ...], outer: tuple[Any, ...]) -> tuple[slice, ...] | None:
    if Ellipsis in inner or Ellipsis in outer:
        return None
    length = max(len(inner), len(outer))
    pairs = zip(*(index + (EVERYTHING,) * (length - len(index)) for index in (inner, outer)), strict=True)
    merged = [_composed(one, other) for one, other in pairs]
    return None if None in merged else tuple(merged)  # type: ignore[arg-type]


def _composed(inner: slice, outer: slice) -> slice | None:
    """The slice that takes what `outer` takes of what `inner` takes; None where that depends on the size."""
    if inner == EVERYTHING or outer == EVERYTHING:
        return outer if inner == EVERYTHING else inner
    if any(bound is not None and bound < 0 for part in (inner, outer) for bound in (part.start, part.stop)):
        return None
    start, step = inner.start or 0, inner.step or 1
    stops = [] if inner.stop is None else [inner.stop]
    stops += [] if outer.stop is None else [start + outer.stop * step]
    return slice(start + (outer.start or 0) * step, min(stops, default=None), step * (outer.step or 1))


def _part(index: tuple[Any, ...], axis: int, rank: int | None) -> slice | None:
    """The slice along an axis, counted from the last, of an index that takes everything along the others."""
    if Ellipsis in index:
        place = index.index(Ellipsis)
        index = index[place + 1 :] if all(item == EVERYTHING for item in index[:place]) else ()
        index = (EVERYTHING,) * max(0, -axis - len(index)) + index
    elif rank is not None:
        index = index + (EVERYTHING,) * (rank - len(index))
    else:
        return None
    if len(index) < -axis or index[axis].step not in (None, 1):
        return None
    others = [item for place, item in enumerate(index) if place != len(index) + axis]
    return index[axis] if all(item == EVERYTHING for item in others) else None


def _text(index: tuple[Any, ...]) -> str:
    def one(part: Any) -> str:
        step = "" if part.step in (None, 1) else f":{part.step}"
        return f"{'' if part.start in (None, 0) else part.start}:{'' if part.stop is None else part.stop}{step}"

    return f"[{', '.join(one(part) for part in index)}]"
