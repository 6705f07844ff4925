"""Writing what a unit has learned into the network, so that it can be undone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from edgeq.modules.layer import QuantizedLayer
    from edgeq.recovery.learning_unit import LearnedWeight, LearningUnit


class Settled:
    """What a unit has learned, in the network's own tensors: offsets of codes, scales and biases."""

    @torch.no_grad()
    def __init__(self, unit: LearningUnit) -> None:
        self._before: list[tuple[Tensor, Tensor]] = []
        for layer, learned in unit.weights.items():
            self._settle(layer, learned)
        for quantizer, activation in unit.activations.items():
            if activation.theta is not None:
                self._write(quantizer.scale, activation.scale)

    def _settle(self, layer: QuantizedLayer, learned: LearnedWeight) -> None:
        quantizer = layer.weight_quantizer
        weight, bias = layer.folded(layer.weight, layer.bias)
        if learned.scale is not None:
            self._write(quantizer.scale, learned.scale)
        offset = quantizer.keep_offset(weight.shape)
        self._before.append((offset, offset.clone()))
        quantizer.keep_codes(weight, learned.codes())
        if learned.bias is not None and bias is not None and layer.deployed_bias is not None:
            self._before += [(tensor, tensor.detach().clone()) for tensor in (layer.deployed_bias, layer.bias_shift)]
            layer.move_bias(learned.bias - bias)

    def _write(self, tensor: Tensor, value: Tensor) -> None:
        self._before.append((tensor, tensor.clone()))
        tensor.copy_(value)

    @torch.no_grad()
    def undo(self) -> None:
        """Puts everything back. Offsets that there were none of before become zeros."""
        for tensor, before in reversed(self._before):
            tensor.copy_(before)
