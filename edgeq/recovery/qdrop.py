"""Learned rounding and scales, block by block, while some of the activations are not quantized."""

from __future__ import annotations

from edgeq.recovery.reconstruction import BOUNDS, Reconstruction
from edgeq.recovery.registry import RECOVERY_STEPS
from edgeq.recovery.soft_rounding import SoftRounding
from edgeq.recovery.units import block_units
from edgeq.recovery.work import Work


@RECOVERY_STEPS.register("qdrop", BOUNDS)
def qdrop(
    work: Work,
    *,
    steps: int = 1000,
    batch: int = 32,
    rate: float = 0.1,
    penalty: float = 30.0,
    scale_rate: float = 1e-3,
    drop: float = 0.5,
) -> str:
    """QDrop (Wei et al., arXiv 2203.05740): as BRECQ, with the scales of the activations, while each element of an
    activation stays real with the probability `drop`: what is learned fits more than the samples.
    """
    return Reconstruction(
        "qdrop", block_units, steps, batch, SoftRounding.of, rate, penalty=penalty, scale_rate=scale_rate, drop=drop
    ).run(work)
