"""A weight that learns as in training: in real numbers, rounded anew at every step, with its scale and its bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeq.arithmetic import along
from edgeq.quantizers.kernel import Grid
from edgeq.quantizers.step import Manner, quantize
from edgeq.spec import ScaleKind

if TYPE_CHECKING:
    from edgeq.modules.layer import QuantizedLayer

SCALE_PACE = 0.1  # of a scale's logarithm, in the pace of the weight's standard deviation


class FreeWeight:
    """The deployed weight and bias of a layer, and the weight's scale where it may be any number.

    The weight begins where it has the codes that the layer has. Its pace is its standard deviation, as in Vitis AI's
    fast finetuning; so is the bias's, which learns where the layer `has_own_bias`.
    """

    def __init__(self, layer: QuantizedLayer, has_own_bias: bool) -> None:
        quantizer = layer.weight_quantizer
        weight, bias = layer.folded(layer.weight, layer.bias)
        self.ends = torch.tensor(float(quantizer.codes_min)), torch.tensor(float(quantizer.codes_max))
        self.axis = quantizer.axis
        self.first_scale = quantizer.scale.clone()
        first = weight.detach().to(torch.float32)
        if quantizer.offset is not None:
            first = first + quantizer.offset * along(self.first_scale, self.axis, first.dim())
        self.first, self.real = first, first.clone().requires_grad_()
        self.theta = torch.zeros_like(self.first_scale)
        self.theta.requires_grad_(quantizer.spec.scale is ScaleKind.FREE)
        self.bias: Tensor | None = None
        if has_own_bias and bias is not None:
            self.bias = bias.detach().to(torch.float32).clone().requires_grad_()

    @property
    def parameters(self) -> list[tuple[Tensor, float]]:
        """What learns, and how fast beside the rate."""
        found = [(self.real, float(self.first.std()))]
        if self.theta.requires_grad:
            found.append((self.theta, SCALE_PACE))
        if self.bias is not None and len(self.bias) > 1:
            found.append((self.bias, float(self.bias.detach().std())))
        return found

    @property
    def scale(self) -> Tensor:
        """The weight's scale; differentiable."""
        return self.first_scale * self.theta.exp()

    def weight(self) -> Tensor:
        """The weight on its grid, differentiable in the weight (straight through) and in the scale."""
        scale = along(self.scale, self.axis, self.real.dim())
        return quantize(self.real, Grid(scale, *self.ends), Manner(margin=0.5))

    def penalty(self, progress: float) -> Tensor:
        """How far the weight has drifted, relative to its size."""
        return (self.real - self.first).square().sum() / self.first.square().sum().clamp(min=1e-30)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The integers, float32, that it is hardened to."""
        return torch.round(self.real / along(self.scale, self.axis, self.real.dim())).clamp(*self.ends)
