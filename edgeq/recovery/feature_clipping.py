"""Ranges of activations that end where the features of a transformer's hidden layer hardly ever are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from edgeq.graph.kinds import module_of
from edgeq.graph.operators import BENT, operator_of
from edgeq.graph.ties import avoid_ties
from edgeq.modules.layer import QuantizedLayer
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.recovery.measured import look
from edgeq.recovery.probe import rows

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule
    from edgeq.recovery.work import Work


@torch.no_grad()
def clip_features(work: Work, sigmas: float) -> int:
    """Ends the range of each tensor that a linear layer reads behind a bent activation at the least and the greatest
    of its features' means plus or minus `sigmas` standard deviations, where those lie inside of it; returns how many
    ranges there are. A linear layer reads a tensor (..., features).
    """
    network = work.network
    layers = {layer for node in network.fx_graph.nodes if (layer := _behind_bent(node, network)) is not None}
    moments: dict[QuantizedLayer, Tensor] = {}

    def take(layer: QuantizedLayer, x: Tensor, output: Tensor) -> None:
        if layer in layers:
            features = rows(x.to(torch.float64), -1)
            sums = torch.stack([torch.ones_like(features).sum(1), features.sum(1), features.square().sum(1)])
            moments[layer] = sums + moments.get(layer, 0.0)

    look(network, work.seen, take)
    for layer, (count, total, squares) in moments.items():
        mean = total / count
        reach = sigmas * (squares / count - mean.square()).clamp(min=0).sqrt()
        quantizer = layer.site.source
        assert quantizer.observer is not None
        low, high = quantizer.observer.range()
        least, greatest = (mean - reach).amin().to(low), (mean + reach).amax().to(high)
        quantizer.take(torch.maximum(low, least), torch.minimum(high, greatest))
    avoid_ties(network)
    network.apply_mode()
    return len(moments)


def _behind_bent(node: fx.Node, network: PreparedModule) -> QuantizedLayer | None:
    """The linear layer that a node calls on what a bent activation gives; None for any other node."""
    layer = module_of(node, network.tree)
    if not isinstance(layer, QuantizedLayer) or layer.operation.function != "linear":
        return None
    source = node.args[0]
    while isinstance(module_of(source, network.tree), TensorQuantizer):  # type: ignore[arg-type]
        source = source.args[0]  # type: ignore[union-attr]
    is_bent = operator_of(source, module_of(source, network.tree)).name in BENT  # type: ignore[arg-type]
    return layer if is_bent and layer.site.source.observer is not None else None
