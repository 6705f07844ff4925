"""The quantizer of an activation while a unit of a network learns: its scale may learn too, its rounding be dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeq.quantizers import kernel
from edgeq.quantizers.step import Manner, quantize
from edgeq.quantizers.tensor import TensorQuantizer, clip


class LearnedActivation:
    """Stands for a quantizer. Once it `learns`, its scale is ``s exp(theta)``, with a parameter `theta` that begins at
    zero, so that steps are relative to the scale. `stays_real`, if set, gives a tensor that is one
    for the elements of another that are not quantized, and zero for the others (QDrop: Wei et al., arXiv 2203.05740).
    """

    def __init__(self, quantizer: TensorQuantizer) -> None:
        self.quantizer = quantizer
        self.theta: Tensor | None = None
        self.stays_real: Callable[[Tensor], Tensor] | None = None

    def learn(self) -> Tensor:
        """Lets the scale learn; what its optimizer is to move."""
        self.theta = torch.zeros_like(self.quantizer.scale).requires_grad_()
        return self.theta

    @property
    def scale(self) -> Tensor:
        """The scale in force; differentiable."""
        return self.quantizer.scale if self.theta is None else self.quantizer.scale * self.theta.exp()

    def __call__(
        self,
        x: Any,
        floor: float | None = None,
        ceiling: float | None = None,
        fresh: bool = False,
        quantizes: bool = True,
    ) -> Any:
        """As the quantizer's forward while it quantizes, but never in place; just the activation function where it
        does not.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        if not quantizes:
            return clip(x, floor, ceiling, fresh=False)
        quantized = self._quantized(x, floor, ceiling)
        if self.stays_real is None:
            return quantized
        return torch.lerp(quantized, clip(x, floor, ceiling, fresh=False), self.stays_real(x))

    def _quantized(self, x: Tensor, floor: float | None, ceiling: float | None) -> Tensor:
        qparams, rounding = self.quantizer.qparams, self.quantizer.spec.rounding
        if self.theta is None:
            return kernel.fake_quantize(x, kernel.grid_of(qparams, floor, ceiling, rounding), rounding, floor, ceiling)
        grid = kernel.Grid(self.scale, qparams.quant_min - qparams.zero_point, qparams.quant_max - qparams.zero_point)
        return quantize(x, grid, Manner(rounding, floor, ceiling, margin=0.5))
