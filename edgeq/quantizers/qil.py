"""QIL: the interval of weights that is quantized is learned (Jung et al., "Learning to quantize deep networks by
optimizing quantization intervals with task loss", CVPR 2019, arXiv 1808.05779).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgeq.quantizers import step
from edgeq.quantizers.dorefa import greatest_of
from edgeq.quantizers.kernel import Grid
from edgeq.quantizers.registry import QUANTIZERS
from edgeq.quantizers.scheme import Scheme
from edgeq.quantizers.step import PLAIN, Manner
from edgeq.quantizers.straight_through import gradient_times

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec

SMALLEST = 1e-6  # base of a power whose exponent learns


@QUANTIZERS.register("qil")
class QIL(Scheme):
    """With a centre c, a distance d and an exponent p, what of a weight lies below c - d in size becomes zero, what
    lies above c + d one, and what lies between ``((|w| - c + d) / 2 d) ** p``, all with the sign of w. That is rounded
    in steps of ``1 / (2**(b - 1) - 1)``, and multiplied by the greatest size at the start, so that a trained network
    begins as what it was; the paper leaves that to the batch norm behind.

    Gradients are multiplied by LSQ's factor, without which they outgrow those of the weights. There is none for
    activations: what the paper's interval does beyond LSQ's step, moving its lower end, the bias in front can do too.

    Parameters, of shape (): `centre`, `distance`, `exponent`. Buffers: `held`, the three that are in force; `size`.
    """

    for_weights = True
    changes_weights = True
    held: Tensor
    size: Tensor

    def __init__(self, spec: TensorSpec, channels: int | None = None) -> None:
        super().__init__(spec, channels)
        self.centre = nn.Parameter(torch.full((), 0.5))
        self.distance = nn.Parameter(torch.full((), 0.5))
        self.exponent = nn.Parameter(torch.ones(()))
        self.register_buffer("held", torch.tensor([0.5, 0.5, 1.0]))
        self.register_buffer("size", torch.ones(()))

    @property
    def reach(self) -> Tensor:
        return self.size

    @torch.no_grad()
    def hold(self) -> None:
        self.held.copy_(torch.stack(list(self.parameters())))

    def transform(self, weight: Tensor) -> Tensor:
        if not self.learns:
            return interval(weight, *self.held) * self.size.to(weight.dtype)
        if self.is_starting:
            self._start(weight)
        self.hold()
        greatest = self.spec.codes(signed=True)[1]
        factor = (greatest * weight.numel()) ** -0.5
        parts = (gradient_times(value.clone(), factor) for value in self.parameters())
        return interval(weight, *parts) * self.size.to(weight.dtype)

    @torch.no_grad()
    def _start(self, weight: Tensor) -> None:
        self.size.copy_(greatest_of(weight))
        self.centre.copy_(self.size / 2)
        self.distance.copy_(self.size / 2)
        self.count()

    def forward(self, x: Tensor, grid: Grid, manner: Manner = PLAIN) -> Tensor:
        return step.quantize(x, grid, manner._replace(margin=0.5))


def interval(weight: Tensor, centre: Tensor, distance: Tensor, exponent: Tensor) -> Tensor:
    """The weight within -1..1. Distances and exponents below zero count as their sizes."""
    distance = distance.abs().clamp(min=torch.finfo(torch.float32).tiny)
    place = (weight.abs().to(torch.float32) - centre.abs() + distance) / (2 * distance)
    inside = torch.clamp(place, SMALLEST, 1.0) ** exponent.abs()
    return (torch.where(place > SMALLEST, inside, 0.0) * weight.detach().sign()).to(weight.dtype)
