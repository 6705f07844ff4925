"""What has to be done again when weights or their scales were changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from edgeq.recovery.work import Work


def calibrate_anew(work: Work) -> None:
    """Takes all ranges anew after weights were changed, and chooses codes and biases again."""
    forget_choices(work)
    work.observe_again()
    end_calibration(work)


def round_anew(work: Work) -> None:
    """Chooses codes and biases again after scales were changed."""
    forget_choices(work)
    end_calibration(work)


@torch.no_grad()
def forget_choices(work: Work) -> None:
    """Lets go of codes and biases that were chosen for the weights and scales as they were."""
    for layer in work.network.quantized_layers():
        if layer.weight_quantizer.offset is not None:
            layer.weight_quantizer.offset.zero_()
        if bool(layer.bias_shift.any()):
            layer.move_bias(-layer.bias_shift)


def end_calibration(work: Work) -> None:
    """Ends as the network's calibration has ended, on what may be learned from."""
    network = work.network
    if network.calibration.is_wanted:
        network.calibration.run(network, work.seen, len(work.seen))
