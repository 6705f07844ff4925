"""What wins accuracy back after quantization. Importing the package registers all steps."""

from edgeq.recovery import compensated_rounding
from edgeq.recovery.registry import RECOVERY_STEPS

__all__ = ["RECOVERY_STEPS", "compensated_rounding"]
