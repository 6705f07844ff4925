"""What a quantized module does with a tensor, at one moment of its life."""

from __future__ import annotations

from enum import Enum

from torch import nn


class Phase(Enum):
    """Held by each quantizer and quantized layer as a plain attribute, so that a forward pass decides without
    reading a tensor; set for a whole model by the schedule.
    """

    FLOAT = "float"  # nothing is quantized, nothing observed: the reference
    OBSERVE = "observe"  # nothing is quantized, ranges are observed: calibration
    ADAPT = "adapt"  # quantized with ranges that follow the data: the first epochs of training
    QUANTIZE = "quantize"  # quantized with frozen ranges: evaluation, the last epochs of training


def set_phase(module: nn.Module, phase: Phase) -> None:
    """Puts every quantizer and quantized layer below `module` into `phase`."""
    for child in module.modules():
        if hasattr(child, "phase"):
            child.phase = phase  # type: ignore[assignment]
