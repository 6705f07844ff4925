"""Layers whose weights are kept as integers, and which compute with them in float: look-ups and recurrences."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from edgeq.modules.qdq import exporting
from edgeq.phase import Phase
from edgeq.quantizers.weight import WeightQuantizer
from edgeq.spec import Method, TensorSpec


class StoredWeights(nn.Module):
    """Mixin for subclasses of the float layers. Their weights have codes, as those of a convolution have; what they
    compute with are the numbers that the codes stand for, and what they give has a range of its own, or none.

    In the phases in which nothing is quantized the layer is the float one. Biases stay float: there is no integer
    accumulator that they could be added to, and bias calibration passes these layers by.

    `weight_quantizers` holds a quantizer for each weight by the weight's name. Its scales come of the weights
    alone, so they are there before anything is calibrated; they follow the weights while training adapts.
    """

    phase: Phase
    weight_quantizers: nn.ModuleDict

    def start(self, spec: TensorSpec, observer: Method, trains: bool = False) -> None:
        """Makes a float layer one with quantized weights, which `trains` or does not; to be called once."""
        self.phase = Phase.FLOAT
        self.weight_quantizers = nn.ModuleDict()
        for name in self.stored_names():
            channels = getattr(self, name).shape[0]
            self.weight_quantizers[name] = WeightQuantizer(spec, observer, channels, axis=0, trains=trains)
        self.refresh()

    def stored_names(self) -> list[str]:
        """The names of the weights that have codes; a scale per channel lies along their first dimension."""
        return ["weight"]

    def quantizer_of(self, name: str) -> WeightQuantizer:
        """The quantizer of a weight."""
        return cast(WeightQuantizer, self.weight_quantizers[name])

    @torch.no_grad()
    def refresh(self, starts: bool = False) -> None:
        """Takes the scales anew from the weights. `starts` says that this is a pass of training, which what is learned
        may start from.
        """
        for name in self.stored_names():
            quantizer = self.quantizer_of(name)
            quantizer.refresh(self._extent(name), starts=starts)

    @property
    def is_float(self) -> bool:
        """Whether the weights are to be used as they are."""
        return self.phase is Phase.FLOAT or self.phase is Phase.OBSERVE

    def stored(self, name: str) -> Tensor:
        """A weight as its codes keep it; the gradient is straight through. An exporter that was handed the prepared
        network itself reads it between QuantizeLinear and DequantizeLinear.
        """
        quantizer, weight = self.quantizer_of(name), self._changed(name)
        return quantizer.as_exported(weight) if exporting() else quantizer(weight)

    def _changed(self, name: str) -> Tensor:
        """A weight as its quantizer wants it."""
        return self.quantizer_of(name).transform(getattr(self, name))

    def _extent(self, name: str) -> Tensor:
        """What a weight's range is measured of."""
        weight = self._changed(name)
        return self.quantizer_of(name).extent(weight, lambda: torch.ones_like(weight))

    def codes(self, name: str) -> tuple[Tensor, Tensor]:
        """The integers of a weight, int8, and their scale, shape () or (channels,)."""
        quantizer = self.quantizer_of(name)
        return quantizer.codes(self._changed(name)).to(torch.int8), quantizer.scale.detach().clone()

    def converted(self) -> nn.Module:
        """The module that computes the same from integers."""
        raise NotImplementedError

    def _adapt(self) -> None:
        if any(self.quantizer_of(name).follows for name in self.stored_names()):
            self.refresh(starts=True)


def plain(value: Any) -> Any:
    """A detached copy of a tensor, float32 if it is floating; None of None."""
    if value is None:
        return None
    value = value.detach().clone()
    return value.to(torch.float32) if value.is_floating_point() else value
