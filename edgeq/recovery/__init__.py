"""What wins accuracy back after quantization. Importing the package registers all steps."""

from edgeq.recovery import bias_calibration, compensated_rounding
from edgeq.recovery.registry import LAYER_STEPS, RECOVERY_STEPS

__all__ = ["LAYER_STEPS", "RECOVERY_STEPS", "bias_calibration", "compensated_rounding", "recovery_steps"]


def recovery_steps() -> list[str]:
    """The names of the steps that `recover` knows."""
    return list(RECOVERY_STEPS)
