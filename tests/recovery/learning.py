"""What the tests of steps that learn have in common: small calibrated networks, and images like photographs."""

import torch
from torch import nn

import edgeq
from tests.networks import network

ROUNDING = {"steps": 60, "batch": 8, "rate": 0.5}
SCALES = {"steps": 60, "batch": 8, "scale_rate": 0.01}
QUICK = {
    "adaround": ROUNDING,
    "brecq": ROUNDING,
    "qdrop": {**ROUNDING, **SCALES},
    "scale_learning": SCALES,
    "fast_finetuning": SCALES,
}
FOUR_BITS = {"inherits": "WC4_AT8", "recovery": [], "activation": {"bits": 4}}


def smooth_images(count, seed):
    """Batches of eight images whose neighbouring pixels are alike."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(8 * count, 3, 4, 4, generator=generator)
    return list(nn.functional.interpolate(small, size=16, mode="bilinear").split(8))


DATA = smooth_images(9, 3)


def calibrated(name="residual", preset=FOUR_BITS, seed=0):
    """A network with ranges, before any recovery."""
    return edgeq.PTCFxModule(network(name, seed), preset, bias_calibration_factor=0.0).calibrate(DATA)


def changed(before, after):
    """The last parts of the keys whose tensors are new or others."""
    keys = [key for key, value in after.items() if key not in before or not torch.equal(value, before[key])]
    return {key.rsplit(".")[-1] for key in keys}
