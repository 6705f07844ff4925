"""What a recovery has done to codes and scales, as a training goes on from it: in the parameters that are trained."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeq.arithmetic import along
from edgeq.modules.computed import computation_of
from edgeq.quantizers.scheme import LearnedScale

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule
    from edgeq.modules.layer import QuantizedLayer
    from edgeq.quantizers.tensor import TensorQuantizer
    from edgeq.quantizers.weight import WeightQuantizer

NEAR = 2e-3  # relative; scales that are moved out of the way of ties differ by less from what is learned


class TakenIn:
    """Finds, when a training begins, what it cannot go on with as it is: codes that are not the nearest ones, which are
    for one weight and not for the next, and scales in force that are not those of what is learned.
    """

    def __init__(self, network: PreparedModule) -> None:
        layers = network.quantized_layers()
        self.layers = [layer for layer in layers if _has_offsets(layer.weight_quantizer)]
        # A weight that is computed, by spectral norm say, is not even looked at: some change whenever they are read.
        places = {layer: layer.weight.data_ptr() for layer in layers if computation_of(layer, "weight") is None}
        uses = Counter(places.values())
        alone = {layer for layer, place in places.items() if uses[place] == 1 and "weight" in layer._parameters}
        self.movable = alone.intersection(self.layers)
        owners: list[TensorQuantizer | WeightQuantizer] = [
            *network.quantizers(),
            *(layer.weight_quantizer for layer in layers),
        ]
        self.owners = [owner for owner in owners if _is_apart(owner)]

    def __bool__(self) -> bool:
        return bool(self.layers or self.owners)

    @torch.no_grad()
    def apply(self) -> None:
        """Moves weights by as many steps as their codes are from the nearest ones, so that they round to them; a weight
        that several layers use, or that is computed, stays, and its codes become the nearest. Quantizers learn on from
        the scales in force.
        """
        for owner in self.owners:
            assert isinstance(owner.scheme, LearnedScale)
            zero_point, least, greatest = _codes(owner)
            owner.scheme.start((least - zero_point) * owner.scale, (greatest - zero_point) * owner.scale)
        for layer in self.layers:
            offset = layer.weight_quantizer.offset
            assert offset is not None
            if layer in self.movable:
                _move(layer, offset)
            offset.zero_()


def _has_offsets(quantizer: WeightQuantizer) -> bool:
    return quantizer.offset is not None and bool(quantizer.offset.any())


def _move(layer: QuantizedLayer, offset: Tensor) -> None:
    """Adds so many steps of the deployed weight to a layer's own."""
    weight = layer.weight
    step = along(layer.weight_quantizer.scale, layer.weight_quantizer.axis, weight.dim())
    gain = layer.site.gain(layer.operation, weight)
    weight.add_(torch.where(gain != 0, offset * step / gain, 0.0).to(weight.dtype))


def _is_apart(owner: TensorQuantizer | WeightQuantizer) -> bool:
    """Whether the scale in force is another than the one that is learned, and that one means anything."""
    scheme = owner.scheme
    if not isinstance(scheme, LearnedScale) or not scheme.has_started or not owner.is_uniform:
        return False
    with torch.no_grad():
        learned, _ = scheme.numbers(owner.qparams, 1)
    return bool(((owner.scale / learned).log().abs() > NEAR).any())


def _codes(owner: TensorQuantizer | WeightQuantizer) -> tuple[Tensor, Tensor, Tensor]:
    """Zero point, least and greatest code, floating."""
    numbers = owner.qparams
    zero_point, least, greatest = (code.to(torch.float32) for code in numbers[1:])
    return zero_point, least, greatest
