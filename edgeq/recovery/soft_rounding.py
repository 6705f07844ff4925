"""AdaRound: which of its two neighbours a weight is rounded to is learned (Nagel et al., arXiv 2004.10568)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeq.arithmetic import along

if TYPE_CHECKING:
    from edgeq.modules.layer import QuantizedLayer

ZETA, GAMMA = 1.1, -0.1  # how far the sigmoid is stretched, so that zero and one are reached
START, END = 20.0, 2.0  # of beta: from flat to pushing
WARM_UP = 0.2  # the part of the steps in which nothing is pushed


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """``h = clamp(sigmoid(alpha) (zeta - gamma) + gamma, 0, 1)``: equation 23 of the paper."""
    return (torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """The alpha for an h in 0..1."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


def beta_at(progress: float) -> float | None:
    """The exponent of the regularizer after a part 0..1 of the steps: from 20 to 2, linearly; None in the warm-up."""
    if progress < WARM_UP:
        return None
    return START + (END - START) * (progress - WARM_UP) / (1 - WARM_UP)


class SoftRounding:
    """The deployed weight ``clamp(floor(w / s) + h(alpha), low, high) s``, with one alpha for each entry, that begins
    where it is the weight itself. `step`, the scale, broadcasts to the weight; `low` and `high` are the ends of the
    codes. Scale and bias stay.
    """

    scale = None
    bias = None

    def __init__(self, weight: Tensor, step: Tensor, low: int, high: int) -> None:
        self.step, self.low, self.high = step, low, high
        ratio = weight.detach().to(torch.float32) / step
        self.floor = torch.floor(ratio)
        self.alpha = inverse_rectified_sigmoid(ratio - self.floor).requires_grad_()

    @classmethod
    def of(cls, layer: QuantizedLayer) -> SoftRounding:
        """That of a layer's deployed weight."""
        quantizer = layer.weight_quantizer
        weight, _ = layer.folded(layer.weight, layer.bias)
        step = along(quantizer.scale, quantizer.axis, weight.dim())
        return cls(weight, step, quantizer.codes_min, quantizer.codes_max)

    @property
    def parameters(self) -> list[tuple[Tensor, float]]:
        """What learns, and how fast beside the rate."""
        return [(self.alpha, 1.0)]

    def weight(self) -> Tensor:
        """The soft weight, differentiable."""
        return (self.floor + rectified_sigmoid(self.alpha)).clamp(self.low, self.high) * self.step

    def penalty(self, progress: float) -> Tensor | None:
        """``mean(1 - |2 h - 1| ** beta)``, which is zero where all h are zero or one; None in the warm-up."""
        beta = beta_at(progress)
        if beta is None:
            return None
        return (1 - (2 * rectified_sigmoid(self.alpha) - 1).abs().pow(beta)).mean()

    def codes(self) -> Tensor:
        """The integers, float32, that the weight is hardened to."""
        return (self.floor + (self.alpha >= 0)).clamp(self.low, self.high)
