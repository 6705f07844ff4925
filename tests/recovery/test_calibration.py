"""Bias calibration moves the mean error of each layer into its bias."""

import copy

import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import CalibrationError
from edgeq.recovery.calibration import channel_mean
from tests.networks import NETWORKS, batches, network

COARSE = {"inherits": "WC8_AT8", "weight": {"bits": 3}}  # large errors, and nearest rounding


def layer_means(wrapped, x, quantized):
    """Each layer's mean output, shape (channels,), of the quantized network or of the float one."""
    means = {}
    for layer in wrapped.module.quantized_layers():
        layer.recorder = lambda layer, _, y: (
            means.update({layer: y.transpose(0, layer.operation.channel_axis).flatten(1).mean(1)}) or y
        )
    with torch.no_grad():
        (wrapped if quantized else wrapped.module.run_float)(x)
    for layer in wrapped.module.quantized_layers():
        layer.recorder = None
    return means


def mean_errors(wrapped, x):
    """Each layer's mean error, in the order of the data."""
    expected, found = layer_means(wrapped, x, quantized=False), layer_means(wrapped, x, quantized=True)
    return [(found[layer] - expected[layer]).abs() for layer in wrapped.module.quantized_layers()]


# ---- one layer, in closed form


ONE = {
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding=1), (8, 3, 6, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), (8, 3, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), (8, 2, 4, 4, 4)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (8, 4, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2), (8, 3, 5, 5)),
    "transposed grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (8, 4, 5, 5)),
    "linear": (lambda: nn.Linear(6, 4), (8, 6)),
    "linear rank 3": (lambda: nn.Linear(6, 4), (8, 5, 6)),
    "linear rank 4": (lambda: nn.Linear(6, 4), (8, 2, 3, 6)),
}  # fmt: skip


def mean_error(module, x, preset=COARSE, activation=None):
    """Mean of the float output minus mean of the quantized one, for each channel, before any move."""
    wrapped = edgeq.PTCFxModule(nn.Sequential(copy.deepcopy(module)), preset, bias_calibration_factor=0).calibrate([x])
    (layer,) = wrapped.module.quantized_layers()
    with torch.no_grad():
        error = module(x) - layer.simulated(layer.site.source(x))
    return error.movedim(layer.operation.channel_axis, 0).flatten(1).mean(1)


@pytest.mark.parametrize("activation", [None, nn.ReLU()])
@pytest.mark.parametrize(("factor", "steps"), [(1.0, 1), (0.5, 1), (0.5, 4), (0.01, 7), (1.0, 3)])
@pytest.mark.parametrize("name", ONE)
def test_the_bias_moves_by_the_factors_share_of_the_mean_error(name, factor, steps, activation):
    make, shape = ONE[name]
    torch.manual_seed(0)
    module, x = make(), torch.rand(shape) + 0.5
    before, error = module.bias.detach().clone(), mean_error(module, x)
    assert error.abs().max() > 0.02
    model = nn.Sequential(module) if activation is None else nn.Sequential(module, activation)
    wrapped = edgeq.PTCFxModule(model, COARSE, bias_calibration_factor=factor).calibrate([x] * steps)
    move = (1 - (1 - factor) ** steps) * error
    assert torch.allclose(module.bias, before + move, atol=2e-5)
    assert torch.allclose(wrapped.module.quantized_layers()[0].bias_shift, move, atol=2e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_behind_a_batch_norm_the_deployed_bias_moves(affine):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, bias=not affine), nn.BatchNorm2d(4, affine=affine)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 5)
    model, x = nn.Sequential(conv, norm).eval(), torch.rand(8, 3, 6, 6)
    expected = model(x).mean((0, 2, 3))
    wrapped = edgeq.PTCFxModule(model, COARSE).calibrate([x])
    moved, other = (norm.bias, conv.bias) if affine else (conv.bias, norm.bias)
    assert other is None
    assert moved.detach().abs().max() > 0.01
    (layer,) = wrapped.module.quantized_layers()
    with torch.no_grad():
        found = layer.simulated(layer.site.source(x)).mean((0, 2, 3))
    assert torch.allclose(found, expected, atol=1e-3)
    assert torch.allclose(wrapped.module.run_float(x).mean((0, 2, 3)), expected, atol=1e-5)


def test_images_of_unlike_sizes_move_it_by_their_mean():
    torch.manual_seed(0)
    module = nn.Conv2d(3, 4, 3)
    before, images = module.bias.detach().clone(), [torch.rand(1, 3, size, size) + 0.5 for size in (5, 9, 6, 7)]
    wrapped = edgeq.PTCFxModule(nn.Sequential(copy.deepcopy(module)), COARSE, bias_calibration_factor=0).calibrate(
        images
    )
    (layer,) = wrapped.module.quantized_layers()
    with torch.no_grad():
        errors = [(module(x) - layer.simulated(layer.site.source(x))).mean((0, 2, 3)) for x in images]
    mean = torch.stack(errors).mean(0)
    assert (errors[-1] - mean).abs().max() > 1e-3  # the last image alone would not do
    for factor in (1.0, 0.3):
        moving = copy.deepcopy(module)
        edgeq.PTCFxModule(nn.Sequential(moving), COARSE, bias_calibration_factor=factor).calibrate(images)
        step = layer.accumulator_scale.max()  # each call sees the bias that the one before left, rounded
        assert torch.allclose(moving.bias, before + (1 - (1 - factor) ** 4) * mean, atol=float(step))


@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: nn.Linear(6, 4), (6,)), (lambda: nn.Conv2d(3, 4, 3), (3, 6, 6)), (lambda: nn.Conv1d(3, 4, 3), (3, 6))],
)
def test_inputs_without_a_batch_calibrate(make, shape):
    torch.manual_seed(0)
    module, inputs = make(), list(torch.rand(40, *shape) + 0.5)
    before = module.bias.detach().clone()
    joined = copy.deepcopy(module)
    edgeq.PTCFxModule(nn.Sequential(joined), COARSE).calibrate([torch.stack(inputs)])
    edgeq.PTCFxModule(nn.Sequential(module), COARSE).calibrate(inputs)
    assert (joined.bias - before).abs().max() > 0.02
    assert torch.allclose(module.bias, joined.bias, atol=2e-3)  # the observed ranges may differ by a little


def test_an_empty_batch_among_others_changes_nothing():
    torch.manual_seed(0)
    module, x = nn.Conv2d(3, 4, 3), torch.rand(8, 3, 6, 6)
    other = copy.deepcopy(module)
    edgeq.PTCFxModule(nn.Sequential(module), COARSE).calibrate([x, x])
    edgeq.PTCFxModule(nn.Sequential(other), COARSE).calibrate([x, x[:0], x])
    assert torch.equal(module.bias, other.bias)


def test_a_network_that_does_not_take_single_samples_is_told_so():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.position, self.linear = nn.Parameter(torch.randn(10, 1, 8)), nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x + self.position)

    data = [torch.randn(10, 4, 8) for _ in range(20)]
    with pytest.raises(CalibrationError, match="bias_calibration_factor=0"):
        edgeq.PTCFxModule(TimeFirst()).calibrate(data)
    edgeq.PTCFxModule(TimeFirst(), bias_calibration_factor=0).calibrate(data)


# ---- several layers


@pytest.mark.parametrize("preset", [COARSE, {"inherits": "WT8SYMP2_AT8SYMP2", "weight": {"bits": 4}, "recovery": []}])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_layer_keeps_a_mean_error_where_it_was_measured(name, preset):
    data = batches(4)
    x = torch.cat(data)
    before = mean_errors(edgeq.PTCFxModule(network(name), preset, bias_calibration_factor=0).calibrate(data), x)
    wrapped = edgeq.PTCFxModule(network(name), preset).calibrate(data)
    after = mean_errors(wrapped, x)
    for layer, old, new in zip(wrapped.module.quantized_layers(), before, after, strict=True):
        assert new.mean() < old.mean()
        assert new.max() < 8 * layer.accumulator_scale.max()  # what the roundings of the biases before it leave
    assert sum(error.mean() for error in after) < 0.15 * sum(error.mean() for error in before)


POWERS_4 = {"inherits": "WT8SYMP2_AT8SYMP2", "weight": {"bits": 4}}


@pytest.mark.parametrize(("preset", "greatest"), [(COARSE, 0.4), ("WC4_AT8", 0.75), (POWERS_4, 0.75)])
@pytest.mark.parametrize("name", NETWORKS)
def test_on_other_data_the_mean_error_shrinks(name, preset, greatest):
    sums = {0.0: 0.0, 1.0: 0.0}
    for seed in range(3):
        data, x = batches(16, seed), torch.cat(batches(16, seed + 100))
        for factor in sums:
            wrapped = edgeq.PTCFxModule(network(name, seed), preset, bias_calibration_factor=factor).calibrate(data)
            sums[factor] += float(torch.cat(mean_errors(wrapped, x)).mean())
    assert sums[1.0] < greatest * sums[0.0]


def test_a_layer_is_measured_behind_corrected_ones():
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
    model, x = nn.Sequential(first, nn.ReLU(), second), torch.rand(16, 3, 8, 8)
    bias = second.bias.detach().clone()
    plain = edgeq.PTCFxModule(copy.deepcopy(model), COARSE, bias_calibration_factor=0).calibrate([x])
    wanted, alone = (list(layer_means(plain, x, quantized=kind).values()) for kind in (False, True))
    edgeq.PTCFxModule(model, COARSE).calibrate([x])
    moved = (second.bias - bias).detach()
    with torch.no_grad():
        plain.module.quantized_layers()[0].bias.add_(wanted[0] - alone[0])  # by hand, the first layer only
    behind = list(layer_means(plain, x, quantized=True).values())[1]
    assert torch.allclose(moved, wanted[1] - behind, atol=2e-3)
    assert (moved - (wanted[1] - alone[1])).abs().max() > 8e-3  # what it would be behind an uncorrected one


def test_layers_without_a_bias_and_with_a_shared_one_are_left_alone():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.plain, self.twice, self.last = nn.Linear(6, 6, bias=False), nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.last(self.twice(torch.relu(self.twice(self.plain(x)))))

    torch.manual_seed(0)
    model, x = Shared(), torch.rand(32, 6)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    wrapped = edgeq.PTCFxModule(model, COARSE).calibrate([x])
    changed = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert changed == ["last.bias"]
    errors = dict(
        zip((layer.site.name for layer in wrapped.module.quantized_layers()), mean_errors(wrapped, x), strict=True)
    )
    assert errors["last"].max() < 1e-3


def test_the_mean_of_a_channel_is_over_everything_else():
    torch.manual_seed(0)
    for make, shape in ONE.values():
        wrapped = edgeq.PTCFxModule(nn.Sequential(make()))
        (layer,) = wrapped.module.quantized_layers()
        output = layer.operation(torch.randn(shape), layer.weight, layer.bias).detach()
        others = [dim for dim in range(output.dim()) if dim != output.dim() + layer.operation.channel_axis]
        assert torch.allclose(channel_mean(layer, output), output.mean(others), atol=1e-5)
