"""A batch norm that no layer takes in becomes a depthwise convolution, and stays the user's."""

import pytest
import torch
from torch import nn

import edgeq
from edgeq.modules.layers import QuantizedConv1d, QuantizedConv2d, QuantizedConv3d
from tests.graph.parity import calibrated, images
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

NAME = "lone_norm_to_conv"


class Preactivated(nn.Module):
    """A norm, its ReLU and a convolution, around which the input goes."""

    def __init__(self, norm=nn.BatchNorm2d, conv=nn.Conv2d, **options):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.act, self.conv = norm(6, **options), nn.ReLU(), conv(6, 6, 3, padding=1)

    def forward(self, x):
        return x + self.conv(self.act(self.norm(x)))


MAPS = {
    1: (nn.BatchNorm1d, nn.Conv1d, QuantizedConv1d),
    2: (nn.BatchNorm2d, nn.Conv2d, QuantizedConv2d),
    3: (nn.BatchNorm3d, nn.Conv3d, QuantizedConv3d),
}


@pytest.mark.parametrize("dimensions", MAPS)
def test_a_norm_is_a_quantized_layer_whose_weight_is_ones_and_nobodys_parameter(dimensions):
    norm, conv, kind = MAPS[dimensions]
    x = images(4, 6, *(7,) * dimensions)
    wrapped = assert_same_function(lambda: lively(Preactivated(norm, conv)), NAME, x)
    layer, _ = layers_of(wrapped)
    assert type(layer) is kind
    assert layer.site.norm is wrapped.module.norm
    assert (layer.site.name, layer.site.floor) == ("norm", 0.0)
    assert torch.equal(layer.weight, torch.ones(6, 1, *(1,) * dimensions))
    assert not isinstance(layer.weight, nn.Parameter)
    assert len(list(wrapped.module.parameters())) == len(list(Preactivated(norm, conv).parameters()))
    assert not [key for key in wrapped.module.state_dict() if key.endswith("norm_conv.weight")]


@pytest.mark.parametrize("options", [{"affine": False}, {"eps": 0.1, "momentum": None}], ids=str)
def test_options_of_the_norm_are_kept_in_training(options):
    assert_trains_as_float(lambda: lively(Preactivated(**options)), NAME, 4, 6, 7, 7)


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
def test_files_agree(preset, tmp_path):
    x = images(4, 6, 7, 7)
    wrapped = calibrated(lively(Preactivated()), x, preset=preset, rewrites=only(NAME, {"inexact": True}))
    assert len(wrapped.module.quantized_layers()) == 2
    assert_files_agree(wrapped, x, folder=tmp_path)


def test_a_norm_over_matrices_is_a_convolution_over_maps_of_one_position():
    def make():
        torch.manual_seed(0)
        parts = [nn.Linear(5, 6), nn.Sigmoid(), nn.BatchNorm1d(6), nn.ReLU(), nn.Sigmoid(), nn.Linear(6, 4)]
        return lively(nn.Sequential(*parts))

    x = images(8, 5)
    wrapped = assert_same_function(make, NAME, x)
    expected = ["unsqueeze", "QuantizedConv1d", "squeeze"]
    assert [kind for kind in kinds(wrapped) if kind in expected] == expected
    assert [layer.site.floor for layer in layers_of(wrapped)] == [None, 0.0, None]
    assert changes(make(), NAME) == ()  # without example inputs nothing says that it has two dimensions


def test_the_norm_is_more_accurate_per_channel_than_alone_is_possible():
    """One rounding for the norm's output, as for the norm in float, but from integers to integers."""
    x = images(16, 6, 9, 9)
    expected = lively(Preactivated())(x)
    errors = [
        (calibrated(lively(Preactivated()), x, rewrites=only(NAME, wanted))(x) - expected).norm()
        for wanted in (True, False)
    ]
    assert errors[0] < 1.1 * errors[1]


def test_a_norm_that_a_layer_takes_in_a_rule_keeps_or_that_has_no_statistics_stays():
    taken = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6))
    assert changes(taken.eval(), NAME) == ()
    rules = {"inherits": "DEFAULT", "rules": [{"name": "norm", "quantize": False}]}
    kept = edgeq.PTCFxModule(lively(Preactivated()), rules, rewrites=only(NAME))
    assert kept.module.changes.each == ()
    assert kept.module.reasons["norm"] == "stays float by the rule for 'norm'"
    assert changes(Preactivated(track_running_stats=False).eval(), NAME) == ()
    rules = {"inherits": "DEFAULT", "rules": [{"name": "0", "quantize": False}]}
    behind = lively(nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)))
    assert changes(behind, NAME, qconfig_type=rules) == ()


@pytest.mark.parametrize("preset", ["WT8SYMP2_AT8SYMP2", "WC8P2_AT8P2", "WC4M4_AT8"])
def test_where_gamma_would_be_rounded_a_norm_stays_in_float_unless_it_may_be_inexact(preset):
    assert changes(lively(Preactivated()), NAME, qconfig_type=preset) == ()
    assert len(changes(lively(Preactivated()), NAME, qconfig_type=preset, options={"inexact": True})) == 1


@pytest.mark.parametrize("preset", ["WC8_AT8", "WC4_AT8"])
def test_a_free_scale_for_each_channel_holds_gamma_exactly(preset):
    x = images(4, 6, 7, 7)
    layer = layers_of(calibrated(lively(Preactivated()), x, preset=preset, rewrites=only(NAME)))[0]
    weight = layer.folded(layer.weight, layer.bias)[0]
    assert torch.allclose(layer.weight_quantizer(weight), weight, rtol=1e-6)
    assert len(weight.unique()) == 6


def test_a_rule_for_the_norm_is_one_for_its_convolution():
    rules = {"inherits": "DEFAULT", "rules": [{"type": "BatchNorm2d", "weight": {"bits": 4}}]}
    wrapped = edgeq.PTCFxModule(lively(Preactivated()), rules, rewrites=only(NAME))
    assert [layer.weight_quantizer.spec.bits for layer in layers_of(wrapped)] == [4, 8]


def test_the_first_convolution_of_a_mixed_preset_is_the_users():
    model = lively(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3)))
    wrapped = edgeq.PTCFxModule(model, "WC4_AT8+WC8_AT8", rewrites=only(NAME))
    assert [layer.weight_quantizer.spec.bits for layer in layers_of(wrapped)] == [4, 8, 4]


def test_a_norm_that_is_called_twice_is_two_layers_over_one_norm():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.norm(self.conv(self.norm(x)).sigmoid())

    wrapped = assert_same_function(lambda: lively(Twice()), NAME, images())
    first, _, second = layers_of(wrapped)
    assert first.site.norm is second.site.norm is wrapped.module.norm
    assert first.site.target is not second.site.target
    assert_trains_as_float(lambda: lively(Twice()), NAME, 4, 3, 8, 8, similar=0.9)
