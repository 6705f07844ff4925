"""DSQ: the gradient of rounding is that of a soft staircase (Gong et al., "Differentiable soft quantization", ICCV
2019, arXiv 1908.05033).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgeq.quantizers.kernel import Grid, with_gradient_of
from edgeq.quantizers.registry import QUANTIZERS
from edgeq.quantizers.scheme import LearnedStep
from edgeq.quantizers.step import PLAIN, Manner, ends_of
from edgeq.quantizers.step_kernel import snap
from edgeq.quantizers.straight_through import gradient_times

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec

LEAST, GREATEST = 0.01, 0.49  # of alpha: nearly a staircase, and nearly a straight line


@QUANTIZERS.register("dsq")
class DSQ(LearnedStep):
    """Rounds as ever, but with the gradients, in x, in the step and in a, of the soft staircase

        s (i + 1/2 + tanh(k (x / s - i - 1/2)) / (2 (1 - a))),  i = floor(x / s),  k = ln(2 / a - 1)

    between the ends of the grid: nearly straight for a near 1/2, and the staircase itself as a falls to 0. The paper
    learns the ends of the range; here they are the step times the ends of the codes, and both gradients are multiplied
    by LSQ's factor, without which they outgrow those of the weights.

    Parameters: `step`, shape () or (channels,); `alpha`, shape (), which begins at the option of that name.
    """

    for_weights = for_activations = True
    bounds = {**LearnedStep.bounds, "alpha": (LEAST, GREATEST)}  # noqa: RUF012

    def __init__(self, spec: TensorSpec, channels: int | None = None, *, batches: int = 1, alpha: float = 0.4) -> None:
        super().__init__(spec, channels, batches=batches)
        self.alpha = nn.Parameter(torch.full((), alpha, dtype=torch.float32))

    def forward(self, x: Tensor, grid: Grid, manner: Manner = PLAIN) -> Tensor:
        constant = Grid(*(value.detach() for value in grid))
        ends = ends_of(constant, manner)
        exact = snap(x.detach(), Grid(constant.scale, ends.lower, ends.upper), manner.rounding)
        if not torch.is_grad_enabled():
            return exact
        real = x.to(torch.float32)
        if manner.floor is not None or manner.ceiling is not None:
            real = torch.clamp(real, manner.floor, manner.ceiling)
        ratio = torch.clamp(real / grid.scale, grid.lower, grid.upper)
        soft = grid.scale * soft_staircase(ratio, self._alpha(grid, x.numel()))
        return with_gradient_of(soft.to(x.dtype), exact)

    def _alpha(self, grid: Grid, elements: int) -> Tensor:
        factor = torch.rsqrt(grid.upper.detach().clamp(min=1.0) * max(1, elements))  # 0 ends what is never positive
        alpha = gradient_times(self.alpha.clone(), factor)
        return with_gradient_of(alpha, alpha.clamp(LEAST, GREATEST))


def soft_staircase(x: Tensor, alpha: Tensor) -> Tensor:
    """A differentiable step at each half integer that passes through all integers; `alpha` in 0..1/2."""
    floor = torch.floor(x.detach())
    steepness = torch.log(2 / alpha - 1)
    return floor + 0.5 + torch.tanh(steepness * (x - floor - 0.5)) / (2 * (1 - alpha))
