"""A pull on weights, while they are trained, towards the middle of the code that they round to: they oscillate less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgeq.arithmetic import along

if TYPE_CHECKING:
    from edgeq.modules.layer import QuantizedLayer


def dampened(weight: Tensor, error: Tensor, strength: float) -> Tensor:
    """`weight`, whose gradient gets that of ``strength * ||error||**2`` added, where `error` is what rounding adds to
    the weight (Nagel et al., arXiv 2203.11086, equation 8). What lies beyond the codes has no error to be pulled by.
    """
    pulled: Tensor = _Pull.apply(weight, error, strength)
    return pulled


@torch.no_grad()
def rounding_error(layer: QuantizedLayer) -> Tensor:
    """What rounding adds to each entry of a layer's weight, in its own units, not in those of the deployed one; zero
    for what is clipped, and where folding leaves nothing of an entry.
    """
    weight, _ = layer.folded(layer.weight, None)
    quantizer = layer.weight_quantizer
    error = quantizer(weight) - weight
    gain = layer.site.gain(layer.operation, weight)
    counts = gain != 0
    if quantizer.is_uniform:
        scale = along(quantizer.scale, quantizer.axis, weight.dim())
        counts = counts & (weight >= quantizer.codes_min * scale) & (weight <= quantizer.codes_max * scale)
    return torch.where(counts, error / gain, 0.0)


class _Pull(torch.autograd.Function):
    """Changes nothing on the way forward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, error: Tensor, strength: float) -> Tensor:
        ctx.save_for_backward(error)
        ctx.strength = strength
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (error,) = ctx.saved_tensors
        return grads[0] - 2 * ctx.strength * error, None, None
