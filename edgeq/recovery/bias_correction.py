"""Analytic bias correction: what the rounding of weights adds to the mean of a channel is taken off its bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeq.recovery.calibration import with_own_bias
from edgeq.recovery.input_means import known_means, mean_answers
from edgeq.recovery.registry import RECOVERY_STEPS

if TYPE_CHECKING:
    from edgeq.modules.layer import QuantizedLayer
    from edgeq.recovery.work import Work


@RECOVERY_STEPS.register("bias_correction")
@torch.no_grad()
def bias_correction(work: Work, *, analytic: bool = True) -> str:
    """Makes each bias smaller by the weight's rounding error times the mean of the layer's input (Nagel et al., arXiv
    1906.04721, section 4.2); zero padding is reckoned with. Behind a batch norm and an activation that clips, pools
    and means in between or not, that mean comes from the batch norm, elsewhere, and everywhere without `analytic`,
    from the float network on the data.

    It takes the place of whatever calibration has added to the biases; that of `bias_calibration` is the mean error of
    activations too, but knows no more than its samples.
    """
    network = work.network
    known = known_means(network, work.seen[0]) if analytic else {}
    movable = with_own_bias(network.quantized_layers())

    def error(layer: QuantizedLayer) -> Tensor | None:
        if layer not in movable:
            return None
        weight, _ = layer.folded(layer.weight, layer.bias)
        return layer.weight_quantizer(weight) - weight

    for layer, answer in mean_answers(work, error, known).items():
        layer.move_bias(-answer - layer.bias_shift)
    return f"{len(movable)} layers, {len(known.keys() & movable)} of them analytically"
