"""Learned rounding, block by block."""

from __future__ import annotations

from edgeq.recovery.reconstruction import BOUNDS, Reconstruction
from edgeq.recovery.registry import RECOVERY_STEPS
from edgeq.recovery.soft_rounding import SoftRounding
from edgeq.recovery.units import block_units
from edgeq.recovery.work import Work


@RECOVERY_STEPS.register("brecq", BOUNDS)
def brecq(work: Work, *, steps: int = 1000, batch: int = 32, rate: float = 0.1, penalty: float = 30.0) -> str:
    """BRECQ (Li et al., arXiv 2102.05426): as AdaRound, but the layers of a block learn together, so that the errors of
    one can be made good by the next.
    """
    return Reconstruction("brecq", block_units, steps, batch, SoftRounding.of, rate, penalty=penalty).run(work)
