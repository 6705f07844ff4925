"""A batch norm over a concatenation is one over each of its parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from edgeq.graph.conditions import argument
from edgeq.graph.operators import Behaviour, behaviour_of
from edgeq.graph.passes.draft import Draft
from edgeq.graph.passes.layers import BATCH_NORMS, Layer, as_folded, layer_of, norm_of, sample_of
from edgeq.graph.passes.registry import Stage, rewrite
from edgeq.modules.folding import Folds
from edgeq.modules.norm_slice import NormSlice
from edgeq.modules.torch_class import torch_class


@rewrite("norm_after_concat", Stage.FOLD, "a batch norm over a concatenation of layers -> folded into each of them")
def norm_after_concat(draft: Draft) -> None:
    """Where all that is concatenated along the channels are outputs of layers that nobody else reads, each layer
    takes in the norm over its own channels, and the activation behind the norm as well.
    """
    for node in draft.nodes():
        norm = norm_of(draft, node)
        cat: Any = node.args[0] if torch_class(norm) in BATCH_NORMS else None
        if cat is None or draft.kind(cat) != "cat" or cat.target is torch.stack or draft.reader(cat) is not node:
            continue
        heads = cat.args[0] if cat.args else []
        layers = [layer_of(draft, head) for head in heads] if isinstance(heads, list | tuple) else []
        fitting = [layer for layer in layers if layer is not None and torch_class(norm) in layer.norms]
        if not fitting or len(fitting) < len(layers) or not _is_along_channels(cat, fitting):
            continue
        alone = len(set(heads)) == len(heads) and all(list(head.users) == [cat] for head in heads)
        complete = sum(layer.outputs for layer in fitting) == norm.num_features
        if alone and complete and all(draft.gives_way(node, head) for head in heads):
            _distribute(draft, node, norm, cat, list(heads), fitting)


def _is_along_channels(cat: fx.Node, layers: list[Layer]) -> bool:
    dim = argument(cat, 1, "dim", cat.kwargs.get("axis", 0))
    return all(dim in (1, layer.operation.channel_axis) for layer in layers)


def _distribute(
    draft: Draft, node: fx.Node, norm: Any, cat: fx.Node, heads: list[fx.Node], layers: list[Layer]
) -> None:
    clip = _clip_of(draft, node)
    order = {n: index for index, n in enumerate(draft.graph.nodes)}
    first = min(heads, key=order.__getitem__)
    edges = [0]
    parts = []
    for head, layer in zip(heads, layers, strict=True):
        edges.append(edges[-1] + layer.outputs)
        part = NormSlice(norm, edges[-2], edges[-1], counts=head is first)
        parts.append(part)
        name = f"{node.name}_{len(parts) - 1}"
        value = draft.insert(node, head, draft.install(name, part), (head,), name)
        if clip is not None:
            with draft.graph.inserting_after(value):
                copy = draft.graph.node_copy(clip, lambda n, v=value: v)  # type: ignore[misc]
            value = copy
        cat.replace_input_with(head, value)
    (clip or node).replace_all_uses_with(cat)
    samples = [sample_of(draft, layer) for layer in layers]
    before = norm(_joined([as_folded(layer, Folds(), x) for layer, x in zip(layers, samples, strict=True)]))
    folds = [Folds(norm=part) for part in parts]
    after = _joined([as_folded(*given) for given in zip(layers, folds, samples, strict=True)])
    draft.record(node, f"a batch norm over {len(heads)} concatenated layers -> folded into each", before, after)
    draft.erase([node] if clip is None else [clip, node])


def _joined(maps: list[Tensor]) -> Tensor:
    """Maps concatenated along their channels, cut to the size of the least."""
    for axis in range(2, maps[0].dim()):
        size = min(one.shape[axis] for one in maps)
        maps = [one.narrow(axis, 0, size) for one in maps]
    return torch.cat(maps, 1)


def _clip_of(draft: Draft, node: fx.Node) -> fx.Node | None:
    """The activation behind a node, if it is one that a layer takes in."""
    reader = draft.reader(node)
    if reader is None or behaviour_of(reader, draft.module(reader)) is not Behaviour.CLIP:
        return None
    return reader if draft.gives_way(reader, node) else None
