"""A product of two quantized tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeq.arithmetic import LARGEST_EXACT_INTEGER, bias_scale, multiplier
from edgeq.modules.exact import round_off_device_noise
from edgeq.modules.qdq import exporting
from edgeq.phase import Phase
from edgeq.quantizers import kernel
from edgeq.quantizers.tensor import TensorQuantizer, clip


@dataclass
class MatmulSite:
    """The quantizers of the two factors and of the product, and the bounds of an activation that follows."""

    name: str
    left: TensorQuantizer
    right: TensorQuantizer
    target: TensorQuantizer | None = None
    floor: float | None = None
    ceiling: float | None = None


class QuantizedMatmul(nn.Module):
    """`torch.matmul` with a quantized output; like `QuantizedLayer`, exact where no gradient is wanted."""

    def __init__(self, site: MatmulSite) -> None:
        super().__init__()
        self.site = site
        self.phase = Phase.FLOAT

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        with_gradient = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
        trains = self.phase is not Phase.QUANTIZE or (self.training and with_gradient)
        three = (self.site.left, self.site.right, self.site.target)
        trains = trains or not all(quantizer is None or quantizer.is_uniform for quantizer in three)
        if trains or torch.compiler.is_compiling() or exporting():
            return self._trained(left, right)
        with torch.no_grad():
            exact = self._exact(left, right)
        return kernel.with_gradient_of(self._trained(left, right), exact) if with_gradient else exact

    def _trained(self, left: Tensor, right: Tensor) -> Tensor:
        product = torch.matmul(left, right)
        if self.site.target is None:
            return clip(product, self.site.floor, self.site.ceiling, fresh=True)
        return self.site.target(product, self.site.floor, self.site.ceiling, fresh=True)

    def _exact(self, left: Tensor, right: Tensor) -> Tensor:
        site, dtype = self.site, left.dtype
        reach = [kernel.grid_of(quantizer.qparams)[1:] for quantizer in (site.left, site.right)]
        left, right = kernel.centred_codes(left, site.left.scale), kernel.centred_codes(right, site.right.scale)
        accumulator = integer_matmul(left, right, reach[0], reach[1])
        if site.target is None:
            product = accumulator.mul_(bias_scale(site.left.scale, site.right.scale))
            return clip(product, site.floor, site.ceiling, fresh=True).to(dtype)
        factor = multiplier(site.left.scale, site.right.scale, site.target.scale)
        rounding = site.target.spec.rounding
        scale, *ends = kernel.grid_of(site.target.qparams, site.floor, site.ceiling, rounding)
        low, high = (end.item() for end in ends)
        return kernel.settle_accumulator(accumulator, factor, low, high, rounding, scale).to(dtype)


def integer_matmul(
    left: Tensor, right: Tensor, left_reach: tuple[Tensor, Tensor], right_reach: tuple[Tensor, Tensor]
) -> Tensor:
    """The exact product of two tensors of centred codes, float32; a reach is the least and the greatest code."""
    if torch.is_autocast_enabled(left.device.type):
        with torch.autocast(left.device.type, enabled=False):
            return integer_matmul(left, right, left_reach, right_reach)
    largest = [torch.maximum(-low, high) for low, high in (left_reach, right_reach)]
    if bool(largest[0] * largest[1] * left.shape[-1] >= LARGEST_EXACT_INTEGER):
        return torch.matmul(left.to(torch.float64), right.to(torch.float64)).to(torch.float32)
    return round_off_device_noise(torch.matmul(left, right))
