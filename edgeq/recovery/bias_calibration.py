"""Bias calibration and the steps of single layers, run over all samples of a recovery."""

from __future__ import annotations

from edgeq.recovery.calibration import Calibration
from edgeq.recovery.registry import RECOVERY_STEPS
from edgeq.recovery.work import Work


@RECOVERY_STEPS.register("bias_calibration", {"factor": (0.0, 1.0)})
def bias_calibration(work: Work, *, factor: float = 1.0) -> str:
    """Takes `factor`, 0..1, of the mean error off each channel of each layer, in the order of the data."""
    return _calibrated(work, Calibration(factor))


@RECOVERY_STEPS.register("compensated_rounding", {"factor": (0.0, 1.0)})
def compensated_rounding(work: Work, *, factor: float = 1.0) -> str:
    """Rounds each layer's weights so that their errors cancel, and then calibrates its bias."""
    for layer in work.network.quantized_layers():
        layer.weight_quantizer.keep_offset(layer.weight.shape)
    return _calibrated(work, Calibration(factor, ("compensated_rounding",)))


def _calibrated(work: Work, calibration: Calibration) -> str:
    calibration.run(work.network, work.seen, 1)
    return f"{len(work.seen)} batches"
