"""What quantization adds to the state of a network."""

from __future__ import annotations

from torch import nn

from edgeq.schedule import Schedule
from edgeq.stability import Stability


class Quantization(nn.Module):
    """What quantization adds to a network, under the one key `quantization` of its state dict."""

    def __init__(
        self,
        schedule: Schedule,
        tensors: nn.ModuleDict,
        layers: nn.ModuleDict,
        dropouts: nn.ModuleDict,
        norms: nn.ModuleDict,
    ) -> None:
        super().__init__()
        self.schedule, self.tensors, self.layers = schedule, tensors, layers
        self.dropouts, self.norms = dropouts, norms
        self.stability: Stability | None = None
