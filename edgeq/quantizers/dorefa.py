"""DoReFa: weights are brought to -1..1 before they are rounded (Zhou et al., "DoReFa-Net", arXiv 1606.06160)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeq.quantizers import step
from edgeq.quantizers.kernel import Grid
from edgeq.quantizers.registry import QUANTIZERS
from edgeq.quantizers.scheme import Scheme
from edgeq.quantizers.step import PLAIN, Manner

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec


@QUANTIZERS.register("dorefa")
class DoReFa(Scheme):
    """Rounds ``tanh(w) / max |tanh(w)|``, the maximum over the whole weight, in steps of ``1 / (2**(b - 1) - 1)``. The
    paper's steps are ``2 / (2**b - 1)``, and none of its levels is zero: integers without a zero point, which weights
    have to be, cannot hold them. What is left of a weight that is all in -1..1 is multiplied by the `size` that it had
    at the start, a buffer of shape (): the paper's networks begin untrained, and a batch norm takes any size.

    Nothing is learned. Activations of the paper are those of `fixed_range` 1.
    """

    for_weights = True
    changes_weights = True
    size: Tensor

    def __init__(self, spec: TensorSpec, channels: int | None = None) -> None:
        super().__init__(spec, channels)
        self.register_buffer("size", torch.ones((), dtype=torch.float32))

    @property
    def reach(self) -> Tensor:
        return self.size

    def transform(self, weight: Tensor) -> Tensor:
        if self.is_starting:
            self.size.copy_(greatest_of(weight.detach()))
            self.count()
        bent = torch.tanh(weight)
        return bent * (self.size / greatest_of(bent)).to(bent.dtype)

    def forward(self, x: Tensor, grid: Grid, manner: Manner = PLAIN) -> Tensor:
        return step.quantize(x, grid, manner._replace(margin=0.5))


def greatest_of(weight: Tensor) -> Tensor:
    """The greatest size of an entry, float32 and above zero; differentiable."""
    return weight.abs().amax().to(torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
