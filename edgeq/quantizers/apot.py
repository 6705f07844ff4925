"""APoT: levels are sums of powers of two (Li et al., "Additive powers-of-two quantization", ICLR 2020, arXiv
1909.13144).
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgeq.errors import SpecError
from edgeq.qparams import code_bounds
from edgeq.quantizers.kernel import Grid, with_gradient_of
from edgeq.quantizers.registry import QUANTIZERS
from edgeq.quantizers.scheme import LearnedScale
from edgeq.quantizers.step import PLAIN, Manner
from edgeq.quantizers.straight_through import scale_of_step

if TYPE_CHECKING:
    from edgeq.qparams import QParams
    from edgeq.spec import TensorSpec

SMALL = 1e-5  # part of the deviation of a weight that is added to it


@QUANTIZERS.register("apot")
class APoT(LearnedScale):
    """Clips to -a..a, or 0..a of an activation without negative numbers, and takes the nearest of the levels a p, where
    p is a sum of powers of two. A weight is first given mean 0 and the deviation that it had at the start (1 in the
    paper, which leaves its size to the batch norm behind), without a gradient for either. The gradient in a is the sign
    of x beyond, and within what the nearest level differs from x / a by.

    Levels are no multiples of a step: what is trained can be simulated, but integer hardware does not hold it.

    Parameter: `alpha`, shape () or (channels,); the owner's scale is its size, in units. Buffers: `deviation`, shape
    (), that of the weight at the start; `levels`, shape (2**bits,), the levels that are not negative, in order: with
    signs of their own they are half as many, and the last fills up.
    """

    for_weights = for_activations = True
    is_uniform = False
    changes_weights = True
    deviation: Tensor
    levels: Tensor

    def __init__(self, spec: TensorSpec, channels: int | None = None, *, batches: int = 1) -> None:
        super().__init__(spec, channels, batches=batches)
        self.alpha = nn.Parameter(torch.ones(self.shape, dtype=torch.float32))
        self.register_buffer("deviation", torch.ones(()))
        self.register_buffer("levels", torch.empty(2**spec.bits, dtype=torch.float32))
        self._take_levels(torch.tensor(spec.codes(signed=True)[1]))

    @classmethod
    def check(cls, spec: TensorSpec) -> None:
        super().check(spec)
        if not spec.symmetric:
            raise SpecError("The quantizer 'apot' has as many levels below zero as above: set symmetric = true.")

    def _take_levels(self, greatest: Tensor) -> None:
        bits = int(greatest + 1).bit_length() - 1
        found = torch.tensor(levels_of(bits))
        self.levels.fill_(1.0)[: len(found)] = found

    @torch.no_grad()
    def start(self, low: Tensor, high: Tensor) -> None:
        self._take_levels(torch.as_tensor(code_bounds(self.spec, low.amin())[1]))
        greatest = torch.maximum(-low, high)
        self.alpha.copy_(torch.where(greatest > 0, greatest, 1.0) / self.unit)

    def numbers(self, qparams: QParams, elements: int) -> tuple[Tensor, Tensor]:
        return scale_of_step(self.alpha, self.unit, 1.0, self.spec.rule), qparams.zero_point.to(torch.float32)

    def transform(self, weight: Tensor) -> Tensor:
        mean, deviation = weight.detach().mean(), weight.detach().std(correction=0)
        if self.is_starting:
            self.deviation.copy_(deviation)
        return (weight - mean) * (self.deviation / (deviation + SMALL * self.deviation)).to(weight.dtype)

    def forward(self, x: Tensor, grid: Grid, manner: Manner = PLAIN) -> Tensor:
        real = x.to(torch.float32)
        if manner.floor is not None or manner.ceiling is not None:
            real = torch.clamp(real, manner.floor, manner.ceiling)
        ratio = torch.clamp(real / grid.scale, grid.lower.sign(), grid.upper.sign())
        nearest = project(ratio.detach(), self.levels)
        simulated = with_gradient_of(ratio, nearest) * grid.scale
        return with_gradient_of(simulated, nearest * grid.scale.detach()).to(x.dtype)


def project(x: Tensor, levels: Tensor) -> Tensor:
    """The nearest level to each number, with its sign; between two the lower."""
    between = (levels[1:] + levels[:-1]) / 2
    return levels[torch.bucketize(x.abs().contiguous(), between)] * x.sign()


def levels_of(bits: int) -> list[float]:
    """The 2**bits levels in 0..1, in order: sums of one power of two, or zero, of each group, over the greatest. There
    are bits / 2 groups of three powers, which are taken in turns; an odd bit is a group of one.
    """
    groups: list[list[int]] = [[] for _ in range(bits // 2)]
    exponent = 0
    odd: list[list[int]] = []
    for turn in range(3):
        if turn == 2 and bits % 2:
            exponent += 1
            odd = [[exponent]]
        for group in groups:
            exponent += 1
            group.append(exponent)
    odd = [[1]] if bits == 1 else odd
    choices = [[0.0, *(2.0**-power for power in group)] for group in groups + odd]
    sums = sorted({sum(choice) for choice in product(*choices)})
    return [value / sums[-1] for value in sums]
