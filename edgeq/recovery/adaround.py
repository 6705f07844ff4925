"""Learned rounding, layer by layer."""

from __future__ import annotations

from edgeq.recovery.reconstruction import BOUNDS, Reconstruction
from edgeq.recovery.registry import RECOVERY_STEPS
from edgeq.recovery.soft_rounding import SoftRounding
from edgeq.recovery.units import layer_units
from edgeq.recovery.work import Work


@RECOVERY_STEPS.register("adaround", BOUNDS)
def adaround(work: Work, *, steps: int = 1000, batch: int = 32, rate: float = 0.1, penalty: float = 30.0) -> str:
    """AdaRound (Nagel et al., arXiv 2004.10568): learns to which of its two neighbours each weight is rounded, so that
    each layer, behind what is quantized before it, gives what it gives in the float network.
    """
    return Reconstruction(
        "adaround", layer_units, steps, batch, SoftRounding.of, rate, penalty=penalty, until_quantized=True
    ).run(work)
