"""Quantizers of weights, whose scale is that of a given weight."""

import dataclasses

from edgeq.phase import Phase
from edgeq.quantizers.weight import WeightQuantizer
from edgeq.spec import WEIGHT, Method


def quantizer(weight, axis=0, observer="minmax", phase=Phase.QUANTIZE, **changes):
    made = WeightQuantizer(dataclasses.replace(WEIGHT, **changes), Method(observer), weight.shape[axis], axis)
    made.phase = phase
    made.refresh(weight)
    return made
