"""What each preset does to a network, read off the file that leaves the house."""

from __future__ import annotations

import itertools
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import edgeq
from tests.networks import batches, network
from tests.test_presets import CALIBRATED

PEAK, HEAVY = 12.0, 6.0  # a rare input among normal ones, and a great weight
POWER_OF_TWO = [name for name in CALIBRATED if "P2" in name]
SYMMETRIC = [name for name in CALIBRATED if "SYMP2" in name]


class Effects(NamedTuple):
    weights: str  # one scale a "channel" or a "tensor"
    weight_bits: int
    heaviest: float  # what becomes of a weight of 6
    scales: str  # "free" or "power of two"
    zero_points: str  # "affine" where one differs from zero, else "symmetric"
    reach: str  # how much of a range whose bulk ends below 5 and whose peak is 12 is kept
    constant: bool  # whether the scales are those of the range 4, whatever the data


def calibrated(name, gain=1.0):
    model = network("residual")
    with torch.no_grad():
        model.fc.weight[0, 0] = HEAVY
    data = [gain * batch for batch in batches(16, 3, 16)]
    data[0][5, 0, 3, 3], data[1][7, 1, 2, 2] = gain * PEAK, -gain * PEAK
    return edgeq.PTCFxModule(model, name, bias_calibration_factor=0.0).calibrate(data), torch.cat(data)


@lru_cache(maxsize=64)
def initializers(name, net="residual"):
    """The initializers of the exported file."""
    with TemporaryDirectory() as folder:
        wrapped = (
            calibrated(name)[0] if net == "residual" else edgeq.PTCFxModule(network(net), name).calibrate(batches())
        )
        path = wrapped.export(batches(1)[0], Path(folder) / "model.onnx", verify=False).path
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def is_power_of_two(values):
    return bool((np.frexp(values)[0] == 0.5).all())


def activations(file, kind):
    return {
        name: value
        for name, value in file.items()
        if name.endswith(f"_{kind}") and ".weight" not in name and ".bias" not in name
    }


def observed(name):
    file = initializers(name)
    scales = [value for key, value in file.items() if key.endswith("_scale")]
    zero_points = activations(file, "zero_point")
    largest = int(np.abs(file["conv2.weight"].astype(int)).max())  # of a layer in the middle
    heaviest = float(file["fc.weight"][0, 0] * file["fc.weight_scale"].reshape(-1)[0])
    limits = np.iinfo(file["x_zero_point"].dtype)
    reach = float((limits.max - float(file["x_zero_point"])) * file["x_scale"])
    near = [("peak", PEAK), ("middle", 8.0), ("bulk", 4.0)]
    return Effects(
        "tensor" if file["conv1.weight_scale"].ndim == 0 else "channel",
        next(bits for bits in (2, 4, 8) if largest <= 2 ** (bits - 1)),
        round(heaviest, 1),
        "power of two" if is_power_of_two(np.concatenate([scale.reshape(-1) for scale in scales])) else "free",
        "affine" if any(int(value) != 0 for value in zero_points.values()) else "symmetric",
        "more" if reach > 1.1 * PEAK else min(near, key=lambda pair: abs(pair[1] - reach))[0],
        all(float(value) in (4 / 128, 4 / 256) for value in activations(file, "scale").values()),
    )


EFFECTS = {
    "DEFAULT": Effects("channel", 8, 6.0, "free", "affine", "middle", False),
    "WC8_AT8": Effects("channel", 8, 6.0, "free", "affine", "bulk", False),
    "MSA_WC8_AT8": Effects("channel", 8, 6.0, "free", "affine", "peak", False),
    "WC4_AT8": Effects("channel", 4, 6.0, "free", "affine", "bulk", False),
    "WC4_AT4": Effects("channel", 4, 6.0, "free", "affine", "middle", False),
    "WC2_AT4": Effects("channel", 2, 6.0, "free", "affine", "middle", False),
    "WC4M4_AT8": Effects("channel", 4, 4.0, "free", "affine", "bulk", False),
    "WC8P2_AT8P2": Effects("channel", 8, 6.0, "power of two", "affine", "bulk", False),
    "MSA_WC8P2_AT8P2": Effects("channel", 8, 6.0, "power of two", "affine", "more", False),
    "WC8SYMP2_AT8SYMP2": Effects("channel", 8, 6.0, "power of two", "symmetric", "bulk", False),
    "WT8SYMP2_AT8SYMP2": Effects("tensor", 8, 6.0, "power of two", "symmetric", "bulk", False),
    "WC8SYMP2_AT8SYMP2R4": Effects("channel", 8, 6.0, "power of two", "symmetric", "bulk", True),
}


@pytest.mark.parametrize("name", CALIBRATED)
def test_a_preset_has_the_effects_that_it_is_named_for(name):
    assert observed(name) == EFFECTS[name]


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(CALIBRATED, 2)))
def test_no_two_presets_do_the_same(one, other):
    assert observed(one) != observed(other)


@pytest.mark.parametrize("name", ["WC4_AT8", "WC4M4_AT8"])
def test_weights_of_four_bits_lie_within_their_codes_in_the_file_and_reach_both_ends(name):
    file = initializers(name)
    for layer in ("conv1", "conv2", "fc"):
        codes = file[f"{layer}.weight"]
        assert codes.dtype == np.int8
        assert (codes.min() >= -8, codes.max()) == (True, 7)


def test_m4_limits_every_weight_to_four_and_wc4_none():
    heaviest = {
        name: np.abs(initializers(name)["fc.weight"][0] * initializers(name)["fc.weight_scale"][0]).max()
        for name in ("WC4_AT8", "WC4M4_AT8")
    }
    assert heaviest["WC4M4_AT8"] == pytest.approx(4.0)
    assert heaviest["WC4_AT8"] == pytest.approx(HEAVY)


@pytest.mark.parametrize("net", ["residual", "separable", "attention"])
@pytest.mark.parametrize("name", POWER_OF_TWO)
def test_every_scale_in_the_file_is_a_power_of_two(name, net):
    scales = {key: value for key, value in initializers(name, net).items() if key.endswith("_scale")}
    assert len(scales) >= 10
    assert [key for key, value in scales.items() if not is_power_of_two(value)] == []


@pytest.mark.parametrize("net", ["residual", "separable", "attention"])
@pytest.mark.parametrize("name", SYMMETRIC)
def test_every_zero_point_of_a_symmetric_preset_is_zero_in_the_file(name, net):
    zero_points = [value for key, value in initializers(name, net).items() if key.endswith("_zero_point")]
    assert len(zero_points) >= 10
    assert sum(np.abs(value.astype(int)).sum() for value in zero_points) == 0


def test_each_channel_has_a_scale_for_its_own_greatest_weight_and_a_tensor_one_for_all():
    def greatest(name):
        return np.abs(initializers(name)["conv2.weight"].astype(int)).reshape(8, -1).max(1)

    assert greatest("WC8_AT8").min() >= 127
    assert greatest("WC8SYMP2_AT8SYMP2").min() >= 64  # a power of two may be twice as great as needed, not more
    assert greatest("WT8SYMP2_AT8SYMP2").max() >= 64
    assert greatest("WT8SYMP2_AT8SYMP2").min() < 64


@pytest.mark.parametrize("gain", [0.01, 1.0, 100.0])
def test_r4_has_the_same_scales_whatever_the_data(gain):
    wrapped, _ = calibrated("WC8SYMP2_AT8SYMP2R4", gain)
    signed = {tensor.name: (float(tensor.scale), int(tensor.quant_min)) for tensor in wrapped.module.quantizers()}
    assert signed["x"] == (4 / 128, -128)
    assert signed["conv1"] == signed["pool"] == (4 / 256, 0)  # after a ReLU
    assert signed["conv2"] == (4 / 128, -128)
