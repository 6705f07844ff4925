"""PACT: the clipping level of an activation is learned (Choi et al., "PACT", arXiv 1805.06085)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgeq.qparams import code_bounds
from edgeq.quantizers import step
from edgeq.quantizers.kernel import Grid
from edgeq.quantizers.lsqplus import zero_point_of
from edgeq.quantizers.registry import QUANTIZERS
from edgeq.quantizers.scheme import LearnedScale
from edgeq.quantizers.step import PLAIN, Manner
from edgeq.quantizers.straight_through import scale_of_step

if TYPE_CHECKING:
    from edgeq.qparams import QParams
    from edgeq.spec import TensorSpec


@QUANTIZERS.register("pact")
class PACT(LearnedScale):
    """Clips to 0..a, or to -a..a where there are negative numbers, and rounds what is left. The gradient in a is one
    where x lies beyond, and zero within: the error of rounding has none. The paper's penalty on a is the weight decay
    of its group in the optimizer.

    Parameters, of shape (): `alpha`, and of an affine tensor `beta`, where the range begins.
    """

    for_activations = True

    def __init__(self, spec: TensorSpec, channels: int | None = None, *, batches: int = 1) -> None:
        super().__init__(spec, channels, batches=batches)
        self.alpha = nn.Parameter(torch.ones(self.shape, dtype=torch.float32))
        self.beta = None if spec.symmetric else nn.Parameter(torch.zeros(self.shape, dtype=torch.float32))

    @torch.no_grad()
    def start(self, low: Tensor, high: Tensor) -> None:
        scale = self.widest(low, high)
        if self.beta is None:
            self.alpha.copy_(scale * code_bounds(self.spec, low)[1])
        else:
            begin, end = low.clamp(max=0.0), high.clamp(min=0.0)
            self.beta.copy_(begin)
            self.alpha.copy_(torch.where(end > begin, end, scale))

    def numbers(self, qparams: QParams, elements: int) -> tuple[Tensor, Tensor]:
        begin, codes = (0.0, 0) if self.beta is None else (self.beta.clone(), qparams.quant_min)
        extent = (self.alpha.clone() - begin) / (qparams.quant_max - codes)
        scale = scale_of_step(extent, 1.0, 1.0, self.spec.rule)
        if self.beta is None:
            return scale, qparams.zero_point.to(torch.float32)
        return scale, zero_point_of(self.beta.clone(), scale, qparams)

    def forward(self, x: Tensor, grid: Grid, manner: Manner = PLAIN) -> Tensor:
        return step.quantize(x, grid, manner._replace(rounding_error=False))
