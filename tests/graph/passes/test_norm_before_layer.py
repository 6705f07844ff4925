"""A batch norm directly before a layer that does not pad with zeros goes into the layer's weight and bias."""

import pytest
import torch
from torch import nn

import edgeq
from tests.graph.parity import assert_exact, calibrated, images
from tests.graph.passes.networks import (
    assert_files_agree,
    assert_same_function,
    assert_trains_as_float,
    changes,
    kinds,
    layers_of,
    lively,
    only,
)

NAME = "norm_before_layer"
MATCHING = {
    "conv1d": (nn.BatchNorm1d(6), nn.Conv1d(6, 4, 3), (4, 6, 9)),
    "conv2d": (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, stride=2), (4, 6, 9, 9)),
    "conv3d": (nn.BatchNorm3d(6), nn.Conv3d(6, 4, 2), (4, 6, 5, 5, 5)),
    "no bias": (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, bias=False), (4, 6, 9, 9)),
    "grouped": (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, groups=2), (4, 6, 9, 9)),
    "depthwise": (nn.BatchNorm2d(6), nn.Conv2d(6, 12, 3, groups=6, dilation=2), (4, 6, 9, 9)),
    "valid": (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding="valid"), (4, 6, 9, 9)),
    "mirrored edges": (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), (4, 6, 9, 9)),
    "linear": (nn.BatchNorm1d(6), nn.Linear(6, 4), (16, 6)),
    "no affine": (nn.BatchNorm2d(6, affine=False), nn.Conv2d(6, 4, 1), (4, 6, 9, 9)),
}


def network(norm, layer, behind=()):
    def make():
        torch.manual_seed(0)
        for module in (norm, layer, *behind):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        return lively(nn.Sequential(nn.Sigmoid(), norm, layer, *behind))

    return make


@pytest.mark.parametrize("case", MATCHING)
def test_the_function_stays_and_the_norm_costs_no_rounding(case):
    norm, layer, shape = MATCHING[case]
    wrapped = assert_same_function(network(norm, layer), NAME, images(*shape))
    (quantized,) = wrapped.module.quantized_layers()
    assert quantized.site.before is wrapped.module.get_submodule("1")
    assert quantized.weight is wrapped.module.get_submodule("2").weight
    assert [tensor.name for tensor in wrapped.module.quantizers()] == ["input_1", "0", "2"]
    assert kinds(wrapped) == ["Sigmoid", type(quantized).__name__]


@pytest.mark.parametrize("case", ["conv2d", "no bias", "grouped", "linear", "no affine"])
def test_a_live_norm_trains_as_in_float(case):
    norm, layer, shape = MATCHING[case]
    assert_trains_as_float(network(norm, layer), NAME, *shape)


def test_a_layer_between_two_norms_takes_in_both():
    make = network(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, bias=False), (nn.BatchNorm2d(4), nn.ReLU6()))
    wrapped = assert_same_function(make, NAME, images(4, 6, 9, 9))
    (layer,) = wrapped.module.quantized_layers()
    assert (layer.site.floor, layer.site.ceiling) == (0.0, 6.0)
    assert layer.site.norm is wrapped.module.get_submodule("3")
    assert_trains_as_float(make, NAME, 8, 6, 9, 9, similar=0.95)


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
def test_files_agree(preset, tmp_path):
    make = network(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3), (nn.ReLU(),))
    x = images(4, 6, 9, 9)
    assert_files_agree(calibrated(make(), x, preset=preset, rewrites=only(NAME)), x, folder=tmp_path)


@pytest.mark.parametrize("preset", ["WC8_AT8", "WC4_AT8", "WT8SYMP2_AT8SYMP2"])
def test_a_live_norm_rounds_the_weight_to_the_codes_that_are_deployed(preset):
    torch.manual_seed(0)
    model = lively(nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3))).train()
    wrapped = edgeq.QATFxModule(model, preset, total_epochs=8, rewrites=only(NAME)).train()
    wrapped(images(4, 6, 9, 9))
    (layer,) = wrapped.module.quantized_layers()
    with torch.no_grad():
        raw, gain = layer._raw_weight(layer.weight), layer.site.gain(layer.operation, layer.weight)
        deployed = layer.weight_quantizer(layer.folded(layer.weight, None)[0])
    kept = gain.abs() > 1e-3
    assert torch.allclose((raw * gain)[kept.expand_as(raw)], deployed[kept.expand_as(raw)], rtol=1e-4, atol=1e-6)


def test_a_channel_that_the_norm_turns_off_learns_on():
    torch.manual_seed(0)
    model = lively(nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3))).train()
    with torch.no_grad():
        model[0].weight[2] = 0
    wrapped = edgeq.QATFxModule(model, total_epochs=8, rewrites=only(NAME)).train()
    (wrapped(images(4, 6, 9, 9)) * images(4, 4, 7, 7, seed=1)).sum().backward()
    assert model[0].weight.grad.isfinite().all()
    assert model[0].weight.grad[2].abs() > 1e-3
    assert_exact(wrapped.eval(), images(4, 6, 9, 9))


class Two(nn.Module):
    """A norm with two readers."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)

    def forward(self, x):
        x = self.norm(x)
        return x + self.conv(x)


@pytest.mark.parametrize("model", [
    nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)),
    nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding="same")),
    nn.Sequential(nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 4, 3)),
    nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)),
    nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)),
    nn.Sequential(nn.BatchNorm2d(6, track_running_stats=False), nn.Conv2d(6, 4, 3)),
    nn.Sequential(nn.BatchNorm2d(6), nn.Linear(6, 4)),
    Two(),
], ids=["padding", "same", "transposed", "relu", "taken", "no statistics", "other axis", "two readers"])  # fmt: skip
def test_what_is_not_a_norm_directly_before_such_a_layer_stays(model):
    assert changes(model.eval(), NAME) == ()


def test_a_rule_that_wants_another_range_for_the_norm_keeps_it():
    rules = {"inherits": "DEFAULT", "rules": [{"name": "1", "activation": {"bits": 6}}]}
    model = network(*MATCHING["conv2d"][:2])()
    assert edgeq.PTCFxModule(model, rules, rewrites=only(NAME)).module.changes.each == ()


def test_a_norm_over_rows_is_told_from_one_over_features():
    torch.manual_seed(0)
    rows = lively(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)))
    assert changes(rows, NAME, images(2, 6, 6)) == ()
    with pytest.raises(edgeq.TraceError, match=r"linear layer '1'.*3 dimensions, \(2, 6, 6\)"):
        edgeq.PTCFxModule(rows, rewrites=only(NAME))(images(2, 6, 6))


def test_the_mean_error_goes_into_the_layers_bias():
    make = network(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3))
    x = images(16, 6, 9, 9)
    expected = make()(x).mean((0, 2, 3))
    errors = []
    for factor in (0.0, 1.0):
        wrapped = calibrated(make(), x, preset="WC4_AT8", bias_calibration_factor=factor, rewrites=only(NAME))
        errors.append(float((wrapped(x).mean((0, 2, 3)) - expected).abs().max()))
    assert layers_of(wrapped)[0].bias_shift.abs().max() > 0
    assert errors[1] < 0.2 * errors[0]
