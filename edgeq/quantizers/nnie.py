"""The logarithmic numbers of HiSilicon's NNIE ("GFPQ"): seven bits of an exponent in sixteenths, and a sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeq.errors import SpecError
from edgeq.qparams import QParams
from edgeq.quantizers.kernel import Grid, with_gradient_of
from edgeq.quantizers.registry import QUANTIZERS
from edgeq.quantizers.scheme import Scheme
from edgeq.quantizers.step import PLAIN, Manner

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec

STEPS, LARGEST = 16, 127  # levels an octave; greatest code


@QUANTIZERS.register("nnie")
class NNIE(Scheme):
    """Takes the nearest, in the logarithm, of the levels ``s 2**(k / 16)`` with k in 0..127, or zero below half of the
    least; of negative numbers k begins at 1. s is the power of ``2**(1/16)`` at which the greatest level is nearest to
    the greatest number that was observed. The gradient is that of x itself, everywhere.

    Nothing is learned: s follows the range as a plain quantizer's scale does. Levels are no multiples of a step, which
    only that hardware computes with: edgeq simulates it, in calibration and training, and writes no files for it.
    """

    for_weights = for_activations = True
    is_uniform = False

    def __init__(self, spec: TensorSpec, channels: int | None = None) -> None:
        super().__init__(spec, channels)

    @classmethod
    def check(cls, spec: TensorSpec) -> None:
        super().check(spec)
        if spec.bits != 8 or not spec.symmetric or spec.rule is not None:
            raise SpecError(
                "The quantizer 'nnie' is one of 8 bits, a sign and an exponent: set bits = 8, symmetric = true and "
                'scale = "free".'
            )

    def settled(self, qparams: QParams, low: Tensor, high: Tensor) -> QParams:
        greatest = torch.maximum(-low, high).to(torch.float32)
        greatest = torch.where(greatest > 0, greatest, 1.0).clamp(2.0**-40, 2.0**60)
        exponent = torch.round(STEPS * torch.log2(greatest)) - LARGEST
        return qparams._replace(scale=torch.exp2(exponent / STEPS))

    def forward(self, x: Tensor, grid: Grid, manner: Manner = PLAIN) -> Tensor:
        if manner.floor is not None or manner.ceiling is not None:
            x = torch.clamp(x, manner.floor, manner.ceiling)
        ratio = x.detach().to(torch.float32) / grid.scale
        return with_gradient_of(x, (nearest_level(ratio) * grid.scale).to(x.dtype))


def nearest_level(ratio: Tensor) -> Tensor:
    """The nearest of the levels for s = 1."""
    size, negative = ratio.abs(), ratio < 0
    least = negative.to(torch.float32)
    code = torch.round(STEPS * torch.log2(size.clamp(min=2.0**-20)))
    level = torch.exp2(torch.clamp(code, least, torch.full_like(least, LARGEST)) / STEPS)
    return torch.where(size > torch.exp2(least / STEPS) / 2, level, 0.0) * ratio.sign()
