"""Registers the steps that need the network's own classes, which in turn need the registry."""

from edgeq.recovery import (
    adaround,
    bias_absorption,
    bias_correction,
    brecq,
    equalization,
    fast_finetuning,
    outlier_suppression,
    qdrop,
    scale_learning,
    weight_clipping,
)

__all__ = [
    "adaround",
    "bias_absorption",
    "bias_correction",
    "brecq",
    "equalization",
    "fast_finetuning",
    "outlier_suppression",
    "qdrop",
    "scale_learning",
    "weight_clipping",
]
