"""Bias calibration: explicit values on one layer, and mean errors that shrink on every kind of layer."""

import copy

import pytest
import torch
from torch import nn

import edgeq
from tests.networks import NETWORKS, batches, network

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = [torch.randn(16, 6, 10, 10, generator=GENERATOR) + 0.5 for _ in range(2)]
ROWS = [torch.randn(16, 6, generator=GENERATOR) for _ in range(3)]
THREE_BITS = {"inherits": "WC8_AT8", "weight": {"bits": 3}}  # so that there is an error to take away


def linear(factor, epochs=1):
    """A float linear layer, its calibrated twin and that one's wrapper."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    twin = copy.deepcopy(layer)
    wrapped = edgeq.PTCFxModule(nn.Sequential(twin), THREE_BITS, bias_calibration_factor=factor)
    return layer, twin, wrapped.calibrate(ROWS, epochs)


def shift(factor, epochs=1):
    """By how much calibration moves the bias; shape (4,)."""
    layer, twin, _ = linear(factor, epochs)
    return (twin.bias - layer.bias).detach()


@torch.no_grad()
def mean_error():
    """By how much the output, before its quantizer, is off on average when no bias is moved; shape (4,)."""
    layer, _, wrapped = linear(0)
    rounded, x = wrapped.module.get_submodule("0"), torch.cat(ROWS)
    quantized = rounded.site.source(x)
    bias = rounded.quantized_bias(layer.bias)
    return (layer(x) - nn.functional.linear(quantized, rounded.weight_quantizer(layer.weight), bias)).mean(0)


def test_factor_zero_leaves_every_bias_alone():
    assert torch.equal(shift(0), torch.zeros(4))


def test_factor_one_moves_the_bias_by_the_whole_mean_error():
    assert float(mean_error().abs().max()) > 0.005
    torch.testing.assert_close(shift(1), mean_error(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [0.01, 0.25])
def test_a_smaller_factor_moves_the_bias_by_that_part_of_what_is_left_for_each_batch(factor):
    torch.testing.assert_close(shift(factor), (1 - (1 - factor) ** 3) * mean_error(), rtol=1e-4, atol=1e-6)


def test_a_second_epoch_finds_nothing_left_but_what_rounding_the_bias_costs():
    step = linear(1)[2].module.get_submodule("0").accumulator_scale
    assert bool(((shift(1, epochs=2) - shift(1)).abs() <= 1.01 * step).all())


def test_what_was_moved_is_remembered_so_that_the_float_reference_stays():
    layer, twin, wrapped = linear(1)
    kept = wrapped.module.get_submodule("0").bias_shift
    torch.testing.assert_close(kept, (twin.bias - layer.bias).detach(), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(wrapped.module.run_float(ROWS[0]), layer(ROWS[0]), rtol=1e-5, atol=1e-6)


KINDS = {
    "conv": lambda: [nn.Conv2d(6, 8, 3)],
    "conv in one dimension": lambda: [nn.Flatten(2), nn.Conv1d(6, 8, 3)],
    "grouped conv": lambda: [nn.Conv2d(6, 12, 3, groups=3)],
    "conv and relu": lambda: [nn.Conv2d(6, 8, 3), nn.ReLU()],
    "conv and norm": lambda: [nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8)],
    "transposed conv": lambda: [nn.ConvTranspose2d(6, 8, 2, stride=2)],
    "grouped transposed conv": lambda: [nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2)],
    "linear, 2 dimensions": lambda: [nn.Flatten(), nn.Linear(600, 8)],
    "linear, 4 dimensions": lambda: [nn.Linear(10, 8), nn.ReLU()],
}


@torch.no_grad()
def errors(model, factor, data, axis, preset=THREE_BITS):
    """Mean over the channels of the mean error's size, over the calibration data."""
    wrapped = edgeq.PTCFxModule(copy.deepcopy(model), preset, bias_calibration_factor=factor).calibrate(data)
    x = torch.cat(data)
    return float((model(x) - wrapped(x)).transpose(0, axis).flatten(1).mean(1).abs().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_error_shrinks_on_every_kind_of_layer(kind):
    torch.manual_seed(1)
    model = nn.Sequential(*KINDS[kind]()).eval()
    axis = -1 if "linear" in kind else 1
    before, after = (errors(model, factor, IMAGES, axis) for factor in (0, 1))
    limit = 0.6 if isinstance(model[-1], nn.ReLU) else 0.2  # what is corrected lies in front of the ReLU
    assert after < limit * before


@pytest.mark.parametrize("name", NETWORKS)
def test_the_mean_error_of_a_whole_network_shrinks(name):
    model, data = network(name), batches(2, size=32)
    before, after = (errors(model, factor, data, 1) for factor in (0, 1))
    assert after < 0.1 * before


def test_a_layer_corrects_what_its_predecessor_has_left():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    before, after = (errors(model, factor, IMAGES, 1) for factor in (0, 1))
    assert after < 0.05 * before


def test_training_calibrates_biases_at_the_end_of_an_epoch_where_it_is_asked_for():
    for factor in (0.0, 1.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4))
        before = model[0].bias.detach().clone()
        wrapped = edgeq.QATFxModule(model, THREE_BITS, total_epochs=2, bias_calibration_factor=factor)
        wrapped.train()
        for batch in ROWS:
            wrapped(batch)
        assert torch.equal(model[0].bias, before)
        wrapped.eval()
        moved = float((model[0].bias - before).detach().abs().max())
        assert (moved > 0.005) == bool(factor)
