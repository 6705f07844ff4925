"""Between what ends the channels of each layer's input and output lie in the float network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeq.modules.layer import QuantizedLayer
from edgeq.phase import Phase
from edgeq.recovery.bank import Call
from edgeq.recovery.calibration import run_recorded
from edgeq.recovery.probe import rows

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule

Ends = tuple[Tensor, Tensor]  # the least and the greatest value of each channel, shape (channels,)


@torch.no_grad()
def look(network: PreparedModule, calls: Iterable[Call], at: Callable[[QuantizedLayer, Tensor, Tensor], None]) -> None:
    """Runs the float network and shows `at` each layer with its input and its output before the activation."""

    def recorder(layer: QuantizedLayer, x: Tensor, output: Tensor) -> Tensor:
        at(layer, x, output)
        return output

    try:
        for call in calls:
            run_recorded(network, Phase.FLOAT, call, recorder)
    finally:
        network.apply_mode()


class Measured:
    """`inputs` and `outputs`, before the activation: the ends of each layer's channels over all calls."""

    def __init__(self, network: PreparedModule, calls: Iterable[Call]) -> None:
        self.inputs: dict[QuantizedLayer, Ends] = {}
        self.outputs: dict[QuantizedLayer, Ends] = {}
        look(network, calls, self._take)

    def _take(self, layer: QuantizedLayer, x: Tensor, output: Tensor) -> None:
        axis = layer.operation.channel_axis
        for kept, tensor in ((self.inputs, x), (self.outputs, output)):
            channels = rows(tensor.to(torch.float32), axis)
            low, high = channels.amin(1), channels.amax(1)
            if layer in kept:
                low, high = torch.minimum(low, kept[layer][0]), torch.maximum(high, kept[layer][1])
            kept[layer] = low, high
