"""Training without labels, layer by layer."""

from __future__ import annotations

from edgeq.recovery.calibration import with_own_bias
from edgeq.recovery.free_weight import FreeWeight
from edgeq.recovery.reconstruction import BOUNDS, Reconstruction
from edgeq.recovery.registry import RECOVERY_STEPS
from edgeq.recovery.units import layer_units
from edgeq.recovery.work import Work


@RECOVERY_STEPS.register("fast_finetuning", BOUNDS)
def fast_finetuning(
    work: Work,
    *,
    steps: int = 1000,
    batch: int = 32,
    rate: float = 1e-2,
    scale_rate: float = 1e-3,
    penalty: float = 0.0,
) -> str:
    """AdaQuant (Hubara et al., arXiv 2006.10518), as in Vitis AI: weight, bias and scales of one layer after the other
    learn, so that the layer, behind what is quantized before it, gives what it gives in the float network. What comes
    of the weight is kept as codes, and of the bias as a shift, so that the float network stays what it is.
    """
    own = with_own_bias(work.network.quantized_layers())
    return Reconstruction(
        "fast_finetuning",
        layer_units,
        steps,
        batch,
        lambda layer: FreeWeight(layer, layer in own),
        rate,
        falls=True,
        penalty=penalty,
        scale_rate=scale_rate,
    ).run(work)
