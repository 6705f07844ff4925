"""The two kinds of steps that win accuracy back, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from edgeq.registry import Registry

if TYPE_CHECKING:
    from edgeq.modules.layer import QuantizedLayer
    from edgeq.recovery.work import Work

# A step that a calibration ends with, which presets name: it sees one layer with the quantized inputs that reach it,
# and may change the layer's codes.
LAYER_STEPS: Registry[Callable[[QuantizedLayer, Tensor], None]] = Registry("recovery step")

# A step over a whole calibrated network and samples of its inputs, which `recover` runs. Its options are keyword-only.
# It returns, in a few words, what it did.
RECOVERY_STEPS: Registry[Callable[[Work], str]] = Registry("recovery step")
