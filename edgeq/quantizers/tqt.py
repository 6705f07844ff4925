"""TQT: the logarithm of a threshold is learned (Jain et al., "Trained quantization thresholds", MLSys 2020, arXiv
1903.08066).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgeq.arithmetic import PowerOfTwoRule
from edgeq.errors import SpecError
from edgeq.qparams import code_bounds
from edgeq.quantizers import step
from edgeq.quantizers.kernel import Grid
from edgeq.quantizers.registry import QUANTIZERS
from edgeq.quantizers.scheme import LearnedScale
from edgeq.quantizers.step import PLAIN, Manner
from edgeq.quantizers.straight_through import exact_power_of_two

if TYPE_CHECKING:
    from edgeq.qparams import QParams
    from edgeq.spec import TensorSpec

NEAREST_INTEGER = {
    PowerOfTwoRule.CEIL: torch.ceil,
    PowerOfTwoRule.NEAREST: torch.round,
    PowerOfTwoRule.FLOOR: torch.floor,
}


@QUANTIZERS.register("tqt")
class TQT(LearnedScale):
    """With t the logarithm to base two of the threshold, the scale is ``2**ceil(t) / 2**(b - 1)``, of unsigned codes
    ``2**ceil(t) / 2**b``: a power of two at every step, since the rounding is passed straight through. The gradient in
    t is ``s ln(2)`` times ``round(x / s) - x / s`` where that rounds to a code, and times the end's code beyond. It is
    made for an optimizer that normalizes gradients, as Adam does.

    Parameter: `threshold`, the logarithm, shape () or (channels,).
    """

    for_weights = for_activations = True

    def __init__(self, spec: TensorSpec, channels: int | None = None, *, batches: int = 1) -> None:
        super().__init__(spec, channels, batches=batches)
        self.threshold = nn.Parameter(torch.zeros(self.shape, dtype=torch.float32))

    @classmethod
    def check(cls, spec: TensorSpec) -> None:
        super().check(spec)
        if spec.rule is None or not spec.symmetric:
            raise SpecError(
                "The quantizer 'tqt' learns symmetric power-of-two scales: set symmetric = true and "
                'scale = "power_of_two", or choose another, such as "lsq".'
            )

    @torch.no_grad()
    def start(self, low: Tensor, high: Tensor) -> None:
        _, greatest = code_bounds(self.spec, low)
        self.threshold.copy_(torch.log2(self.widest(low, high) * (greatest + 1)))

    def numbers(self, qparams: QParams, elements: int) -> tuple[Tensor, Tensor]:
        codes = qparams.quant_max.to(torch.float32) + 1
        nearest = NEAREST_INTEGER[self.spec.power_of_two_rule]
        return exact_power_of_two(self.threshold, nearest) / codes, qparams.zero_point.to(torch.float32)

    def forward(self, x: Tensor, grid: Grid, manner: Manner = PLAIN) -> Tensor:
        return step.quantize(x, grid, manner._replace(margin=0.5))
