"""A batch norm in front of a layer goes into the layer's weight and bias."""

from __future__ import annotations

from typing import Any

from torch import fx

from edgeq.graph.fuse import FOLDS_FORWARD
from edgeq.graph.passes.draft import Draft
from edgeq.graph.passes.layers import Layer, as_folded, layer_of, norm_of, sample_of
from edgeq.graph.passes.registry import Stage, rewrite
from edgeq.graph.places import PLACE
from edgeq.modules.folding import Folds
from edgeq.modules.torch_class import torch_class


@rewrite("norm_before_layer", Stage.FOLD, "a batch norm directly before a layer without zero padding -> folded into it")
def norm_before_layer(draft: Draft) -> None:
    """For convolutions that do not pad with zeros, which are no zeros behind the norm, and linear layers; where the
    norm has no other reader and no layer in front of it that takes it in.

    The weight is multiplied with what the norm multiplies each input channel with, and the bias takes in what it
    adds. A norm that is live in training is computed by itself, with the statistics of the batch.
    """
    for node, chain in draft.chains().items():
        norm = norm_of(draft, node)
        reader = None if norm is None or chain.clip is not None else draft.reader(node)
        layer = None if reader is None else layer_of(draft, reader)
        if reader is None or layer is None or layer.source is not node or not _fits(draft, node, norm, layer):
            continue
        if not draft.gives_way(node, reader):
            continue
        x = sample_of(draft, layer)
        before = draft.value(reader, {node.args[0]: x})  # type: ignore[dict-item]
        node.meta[FOLDS_FORWARD] = True
        what = f"a batch norm -> folded into {reader.meta[PLACE].name!r} behind it"
        draft.record(node, what, before, as_folded(layer, Folds(before=norm), x))


def _fits(draft: Draft, node: fx.Node, norm: Any, layer: Layer) -> bool:
    operation = layer.operation
    if operation.transposed or torch_class(norm) not in layer.norms or norm.num_features != layer.inputs:
        return False
    if operation.function == "linear":
        return draft.ranks[node] in (None, 2)  # over rows, it is told when the layer is called
    padding = dict(operation.options).get("padding", 0)
    pads = padding != "valid" if isinstance(padding, str) else padding not in (0, (0,) * len(layer.weight.shape[2:]))
    return not pads or operation.padding_mode != "zeros"
