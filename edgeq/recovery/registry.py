"""Steps that a calibration ends with, which presets name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from edgeq.registry import Registry

if TYPE_CHECKING:
    from edgeq.modules.layer import QuantizedLayer

# A step sees one layer with the quantized inputs that reach it, and may change the layer's codes.
RECOVERY_STEPS: Registry[Callable[[QuantizedLayer, Tensor], None]] = Registry("recovery step")
