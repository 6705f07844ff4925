"""Weight clipping: the few weights that lie far out do not set the scale of all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeq.arithmetic import smallest_weight_scale
from edgeq.recovery.anew import round_anew
from edgeq.recovery.compensated_rounding import has_input_matrix, round_rows, second_moments
from edgeq.recovery.measured import look
from edgeq.recovery.registry import RECOVERY_STEPS
from edgeq.spec import Granularity

if TYPE_CHECKING:
    from edgeq.modules.layer import QuantizedLayer
    from edgeq.recovery.measured import Ends
    from edgeq.recovery.work import Work

FRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  # of a weight's range, that are tried


@RECOVERY_STEPS.register("weight_clipping", {"deviations": (0.0, 1e3)})
@torch.no_grad()
def weight_clipping(work: Work, *, deviations: float = 0.0) -> str:
    """Clips the deployed weight of each layer, for each of its scales, at the ends of the range at which the layer's
    outputs have the least squared error, or at the mean plus and minus so many standard `deviations` where that is
    not 0.

    It is the codes that are clipped, by their scale: the float weights stay, so that bias calibration and compensated
    rounding, where the network was calibrated with them, make good for what is missing, as far as they can. What takes
    all ranges anew, as equalization does, undoes the step: let it come after.
    """
    compensates = "compensated_rounding" in work.network.calibration.steps
    clipped: dict[QuantizedLayer, Tensor] = {}

    def choose(layer: QuantizedLayer, x: Tensor, output: Tensor) -> None:
        if deviations > 0:
            clipped[layer] = _scale_of(layer, *_within(layer, deviations))
        else:
            clipped[layer] = best_scale(layer, x, compensates)

    look(work.network, work.seen[:1], choose)
    narrower = 0
    for layer, scale in clipped.items():
        narrower += int((scale < layer.weight_quantizer.scale).sum())
        layer.weight_quantizer.scale.copy_(torch.minimum(layer.weight_quantizer.scale, scale))
    round_anew(work)
    return f"{narrower} narrower ranges in {len(clipped)} layers"


def best_scale(layer: QuantizedLayer, x: Tensor, compensates: bool) -> Tensor:
    """Of the scales of some fractions of a weight's range, the one, shape () or (channels,), that gives the outputs the
    least squared error on the inputs `x`; the errors of the rounding compensated by each other, or not.
    """
    quantizer, operation = layer.weight_quantizer, layer.operation
    weight, _ = layer.folded(layer.weight, layer.bias)
    rows = operation.rows(weight).to(torch.float64)
    size = rows.shape[1]
    moments = torch.eye(size, dtype=torch.float64, device=rows.device).expand(operation.groups, size, size)
    if has_input_matrix(operation):
        moments = second_moments(operation, weight, x)
    low, high = quantizer.measure(weight)
    best, least = quantizer.scale, torch.full_like(quantizer.scale, torch.inf, dtype=torch.float64)
    for scale in (_scale_of(layer, low * fraction, high * fraction) for fraction in FRACTIONS):
        steps = operation.to_channels(scale).to(torch.float64).expand(len(rows))
        parts = zip(rows.chunk(operation.groups), steps.chunk(operation.groups), moments, strict=True)
        errors = torch.cat([_error(*part, (quantizer.codes_min, quantizer.codes_max), compensates) for part in parts])
        error = errors.sum() if scale.dim() == 0 else errors.reshape(-1, len(scale)).sum(0)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _error(rows: Tensor, scale: Tensor, moments: Tensor, codes: tuple[int, int], compensates: bool) -> Tensor:
    """The mean squared error of each output of a weight matrix (outputs, inputs) for inputs of those moments."""
    nearest = torch.round(rows / scale[:, None]).clamp(*codes)
    kept = round_rows(rows, scale, moments, *codes) if compensates else nearest
    error = kept * scale[:, None] - rows
    return ((error @ moments) * error).sum(1)


def _within(layer: QuantizedLayer, deviations: float) -> Ends:
    """The range of a deployed weight, no wider than so many standard deviations."""
    weight, _ = layer.folded(layer.weight, layer.bias)
    is_whole = layer.weight_quantizer.spec.granularity is not Granularity.CHANNEL
    slices = weight.flatten() if is_whole else weight.transpose(0, layer.weight_quantizer.axis).flatten(1)
    mean, reach = slices.mean(-1), deviations * slices.std(-1, correction=0)
    return torch.maximum(mean - reach, slices.amin(-1)), torch.minimum(mean + reach, slices.amax(-1))


def _scale_of(layer: QuantizedLayer, low: Tensor, high: Tensor) -> Tensor:
    """The scale of a range of a layer's weight, at which its bias fits its integer type."""
    _, bias = layer.folded(layer.weight, layer.bias)
    if bias is None:
        return layer.weight_quantizer.scale_of(low, high)
    smallest = smallest_weight_scale(bias, layer.site.source.scale, layer.site.bias_bits)
    return layer.weight_quantizer.scale_of(low, high, layer.operation.of_channels(smallest))
