"""The scales of all weights that stand before a live batch norm, in a few operations for the whole network.

Layer by layer they take some thirty small operations a layer, more time than the rounding itself; side by side
in one vector, as many for the whole network.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from edgeq.phase import Phase
from edgeq.quantizers.weight import deployed_ends, raw_scale, row_ends
from edgeq.spec import Granularity

if TYPE_CHECKING:
    from edgeq.modules.layer import QuantizedLayer


class LiveScales:
    """Layers whose weights are alike: on one device, of one spec, before batch norms of one form."""

    def __init__(self, layers: list[QuantizedLayer]) -> None:
        self.layers = layers

    @torch.no_grad()
    def refresh(self) -> None:
        """Leaves each layer the scale for its next call, and its quantizer the deployed one while it adapts."""
        quantizers = [layer.weight_quantizer for layer in self.layers]
        norms: list[Any] = [layer.site.norm for layer in self.layers]
        first = quantizers[0]
        factor = torch.rsqrt(torch.cat([norm.running_var for norm in norms]) + norms[0].eps)
        if norms[0].weight is not None:
            factor = torch.cat([norm.weight for norm in norms]) * factor
        ends = torch.cat([row_ends(layer.weight, first.axis) for layer in self.layers], dim=1)
        scales = [quantizer.scale for quantizer in quantizers]
        sizes = [len(scale) for scale in scales]
        if first.phase is Phase.ADAPT:
            scale = first.scale_of(*deployed_ends(ends, factor))
            torch._foreach_copy_(scales, list(scale.split(sizes)))
        else:
            scale = torch.cat(scales)
        for layer, part in zip(self.layers, raw_scale(scale, factor, ends).split(sizes), strict=True):
            layer.live_scale = part


def together(layers: Iterable[QuantizedLayer]) -> list[LiveScales]:
    """The groups of at least two layers whose scales can be found together."""
    groups: dict[Any, list[QuantizedLayer]] = {}
    for layer in layers:
        norm, quantizer = layer.site.norm, layer.weight_quantizer
        # A weight that is no plain parameter may be computed anew whenever it is read, with effects of its own.
        plain = "weight" in layer._parameters and quantizer.follows_extremes
        plain = plain and layer.site.before is None and layer.site.factor == 1.0 and layer.site.strategy.rounds_raw
        if norm is None or not norm.training or not plain or quantizer.spec.granularity is not Granularity.CHANNEL:
            continue
        if len(quantizer.scale) != norm.num_features:
            continue  # a grouped transposed convolution: its rows are not the channels of the norm
        key = (layer.weight.device, quantizer.spec, quantizer.axis, quantizer.phase, norm.eps, norm.weight is None)
        groups.setdefault(key, []).append(layer)
    return [LiveScales(group) for group in groups.values() if len(group) > 1]
