"""Learned scales of activations, block by block."""

from __future__ import annotations

from edgeq.recovery.reconstruction import BOUNDS, Reconstruction
from edgeq.recovery.registry import RECOVERY_STEPS
from edgeq.recovery.units import block_units
from edgeq.recovery.work import Work


@RECOVERY_STEPS.register("scale_learning", BOUNDS)
def scale_learning(work: Work, *, steps: int = 300, batch: int = 32, scale_rate: float = 1e-3) -> str:
    """Learns the scales of the activations that are quantized in a block, so that it gives what it gives in the float
    network; by the gradient of LSQ (Esser et al., arXiv 1902.08153). Codes of weights stay.
    """
    return Reconstruction("scale_learning", block_units, steps, batch, scale_rate=scale_rate).run(work)
