"""Channels that follow one another come to equal ranges, and the float function stays what it is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeq.recovery.equalization import HEADROOM, equalization, limits, weight_table
from edgeq.recovery.pairs import find_pairs
from tests.networks import network
from tests.recovery.uneven import DATA, WT8, calibrated, decibels, difference, layer, uneven, with_relu, work_on


def ranges(model, first, second, groups=1):
    """Of the channels between two layers: in the first one's deployed weight, and in the second one's."""
    tables = [weight_table(layer(model, name)) for name in (first, second)]
    return tables[0].amax(1), tables[1].unflatten(0, (groups, -1)).amax(1).flatten()


def test_ranges_of_a_pair_become_equal():
    model = calibrated(uneven(), WT8)
    before = ranges(model, "conv3", "fc")
    assert (before[0] / before[1]).amax() > 1e4 * (before[0] / before[1]).amin()
    assert equalization(work_on(model), reach=0.0).startswith("3 pairs")
    first, second = ranges(model, "conv3", "fc")
    assert torch.allclose(first, second, rtol=1e-3)
    second_before, third_before = ranges(model, "conv2", "conv3")
    assert torch.allclose(second_before, third_before, rtol=1e-3)


def test_ranges_of_a_depthwise_triple_become_their_geometric_mean():
    model = calibrated(with_relu(network("separable")), WT8)
    names = ("expand.0", "depth.0", "project.0")
    one, two = ranges(model, names[0], names[1], groups=16)
    three = ranges(model, names[1], names[2])[1]
    equalization(work_on(model), reach=0.0)
    expected = (one * two * three) ** (1 / 3)
    for found in (*ranges(model, names[0], names[1], groups=16), ranges(model, names[1], names[2])[1]):
        assert torch.allclose(found, expected, rtol=1e-3)


def test_the_float_function_stays_and_parameters_are_the_user_s_own():
    model = uneven()
    expected, parameters = model(DATA[7]).detach(), dict(model.named_parameters())
    wrapped = calibrated(model)
    equalization(work_on(wrapped))
    assert difference(expected, model(DATA[7])) < 1e-5
    assert difference(expected, wrapped.module.run_float(DATA[7])) < 1e-5
    assert all(parameters[key] is value for key, value in model.named_parameters())
    assert all(parameters[key] is value for key, value in wrapped.module.named_parameters() if key in parameters)


def test_running_statistics_stay():
    model = uneven()
    before = {key: value.clone() for key, value in model.named_buffers()}
    equalization(work_on(calibrated(model)))
    assert all(torch.equal(before[key], value) for key, value in model.named_buffers())


def test_a_network_of_wildly_unequal_channels_gains_many_decibels_per_tensor():
    model = uneven()
    expected = model(DATA[7]).detach()
    wrapped = calibrated(model, WT8)
    before = decibels(expected, wrapped(DATA[7]))
    (step,) = wrapped.recover(DATA, ["equalization"]).steps
    assert step.kept
    assert before < 20
    assert decibels(expected, wrapped(DATA[7])) > max(30, before + 15)


def test_channels_at_the_ceiling_of_a_relu6_keep_their_scale_and_others_stay_off_it():
    model = network("separable")
    with torch.no_grad():
        model.expand[1].weight[:4] *= 20  # reach the ceiling
        model.expand[1].weight[4:8] *= 0.05
    expected = [model(x).detach() for x in DATA]
    wrapped = calibrated(model, WT8)
    norm = model.expand[1].weight.detach().clone()
    note = equalization(work_on(wrapped), reach=0.0)
    assert "reach a bound" in note
    factors = norm / model.expand[1].weight.detach()
    assert torch.equal(factors[:4], torch.ones(4))
    assert (factors[4:8] < 0.5).all()
    assert max(difference(e, model(x)) for e, x in zip(expected, DATA, strict=True)) < 1e-5


def test_limits_follow_from_what_was_measured():
    class Bounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.two(F.hardtanh(self.one(x), -2.0, 4.0))

    model = calibrated(Bounded())
    low, high = torch.tensor([-0.1, -1.9, 0.0, -0.2]), torch.tensor([1.0, 0.1, 4.0, 0.1])
    least, greatest = limits(layer(model, "one"), (low, high), reach=0.0)
    assert least.tolist() == pytest.approx([HEADROOM / 4, 1.0, 1.0, HEADROOM / 10])
    assert greatest.tolist() == [torch.inf, 1.0, 1.0, torch.inf]


def test_no_activation_grows_beyond_its_reach():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
            with torch.no_grad():
                self.one.weight[0] *= 1e-6
                self.one.bias[0] = 1.0

        def forward(self, x):
            return self.two(F.relu(self.one(x)))

    greatest = {}
    for reach in (0.0, 2.0):
        model = Dead()
        size = F.relu(model.one(torch.cat(DATA))).amax().item()
        equalization(work_on(calibrated(model, WT8)), reach=reach)
        greatest[reach] = F.relu(model.one(torch.cat(DATA))).amax().item() / size
    assert greatest[0.0] > 50
    assert greatest[2.0] == pytest.approx(2.0, rel=1e-3)


def test_prelu_groups_transposed_layers_and_flattened_inputs_keep_the_function():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.bend = nn.ConvTranspose2d(3, 8, 2, 2, groups=1), nn.PReLU(8)
            self.two = nn.Conv2d(8, 12, 3, groups=4)
            self.three, self.four = nn.ConvTranspose2d(12, 6, 3, groups=3), nn.Linear(6 * 16, 4)
            with torch.no_grad():
                for each in (self.one, self.two, self.three):
                    values = 2.0 ** torch.linspace(-5, 5, each.bias.numel())
                    each.bias *= values
                    if isinstance(each, nn.ConvTranspose2d):
                        each.weight *= values.reshape(each.groups, -1).repeat_interleave(
                            each.in_channels // each.groups, 0
                        )[..., None, None]
                    else:
                        each.weight *= values[:, None, None, None]

        def forward(self, x):
            x = F.relu(self.two(self.bend(self.one(x))))
            return self.four(torch.flatten(F.max_pool2d(F.relu(self.three(x)), 8), 1))

    model = Many()
    expected = model(DATA[7]).detach()
    wrapped = calibrated(model, WT8)
    assert len(find_pairs(wrapped.module, ((DATA[0],), {})).found) == 3
    equalization(work_on(wrapped), reach=0.0)
    assert difference(expected, model(DATA[7])) < 1e-5
    first, second = ranges(wrapped, "one", "two", groups=4)
    assert torch.allclose(first, second, rtol=1e-3)


def test_biases_that_calibration_has_moved_are_calibrated_again():
    model = uneven()
    float_bias = model.norm1.bias.detach().clone()
    wrapped = calibrated(model, "WC8_AT8", bias_calibration_factor=1.0)
    expected = wrapped.module.run_float(DATA[7])
    factors = model.norm1.weight.detach().clone()
    equalization(work_on(wrapped))
    moved = layer(wrapped, "conv1").bias_shift
    factors /= model.norm1.weight.detach()
    assert moved.any()
    assert torch.allclose((model.norm1.bias.detach() - moved) * factors, float_bias, rtol=1e-4, atol=1e-5)
    assert difference(expected, wrapped.module.run_float(DATA[7])) < 1e-5
