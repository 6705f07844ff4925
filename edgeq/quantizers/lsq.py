"""LSQ: the step is learned (Esser et al., "Learned step size quantization", ICLR 2020, arXiv 1902.08153)."""

from __future__ import annotations

from torch import Tensor

from edgeq.quantizers import step
from edgeq.quantizers.kernel import Grid
from edgeq.quantizers.registry import QUANTIZERS
from edgeq.quantizers.scheme import LearnedStep
from edgeq.quantizers.step import PLAIN, Manner


@QUANTIZERS.register("lsq")
class LSQ(LearnedStep):
    """``s * clamp(round(x / s), l, u)`` with the gradient in s of ``round(x / s) - x / s`` inside, l below and u above,
    times ``1 / sqrt(elements * greatest code)``. With power-of-two scales the forward pass takes the power of two that
    stands for s, and the gradient passes straight through to s.

    Parameter: `step`, shape () or (channels,). Of an affine tensor the zero point stays that of the start.
    """

    for_weights = for_activations = True

    def forward(self, x: Tensor, grid: Grid, manner: Manner = PLAIN) -> Tensor:
        return step.quantize(x, grid, manner)
