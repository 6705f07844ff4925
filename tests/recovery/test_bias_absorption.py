"""What a channel is never without moves on into the next bias, and the float function stays what it is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeq.recovery.bias_absorption import absorbable, bias_absorption
from edgeq.recovery.measured import Measured
from tests.recovery.uneven import DATA, WT8, calibrated, difference, layer, work_on

CALLS = [((x,), {}) for x in DATA]


class Offset(nn.Module):
    """A batch norm of great biases in front of a layer of kernel size `kernel`."""

    def __init__(self, kernel=1, padding=0, mode="zeros", activation=F.relu, channels=4):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.norm = nn.Conv2d(3, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.two, self.activation = nn.Conv2d(channels, 2, kernel, padding=padding, padding_mode=mode), activation
        self.train()
        for _ in range(40):
            self(torch.cat(DATA))
        self.eval()
        with torch.no_grad():
            self.norm.bias.copy_(torch.tensor([8.0, 0.5, 20.0, -1.0]))

    def forward(self, x):
        return self.two(self.activation(self.norm(self.one(x))))


def test_beta_less_three_gamma_is_absorbed_but_no_more_than_the_least_that_was_measured():
    model = Offset()
    wrapped = calibrated(model, WT8)
    least = Measured(wrapped.module, CALLS).outputs[layer(wrapped, "one")][0]
    expected = torch.minimum(model.norm.bias - 3 * model.norm.weight, least).clamp(min=0).detach()
    before, output = model.norm.bias.detach().clone(), model(DATA[7]).detach()
    assert bias_absorption(work_on(wrapped)) == "2 channels of 1 layers"
    assert (before - model.norm.bias).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert expected[0] > 3
    assert difference(output, model(DATA[7])) < 1e-5


def test_the_range_that_is_won_is_quantized_finer():
    model = Offset(activation=nn.Identity())
    with torch.no_grad():
        model.norm.bias.copy_(torch.tensor([40.0, 41.0, 39.0, 40.0]))
    wrapped = calibrated(model, WT8)
    before = layer(wrapped, "one").site.target.scale.item()
    (step,) = wrapped.recover(DATA, ["bias_absorption"]).steps
    assert step.gain > 1
    assert layer(wrapped, "one").site.target.scale.item() < before / 4


SKIPPED = {
    "zeros are padded": {"kernel": 3, "padding": 1},
    "cut off above": {"activation": F.relu6},
    "cut off elsewhere below": {"activation": lambda x: F.hardtanh(x, -1.0, 100.0)},
    "bent": {"activation": F.gelu},
}


@pytest.mark.parametrize("name", SKIPPED)
def test_nothing_is_absorbed_where_the_function_would_change(name):
    model = Offset(**SKIPPED[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert bias_absorption(work_on(calibrated(model, WT8))) in ("no pairs", "0 channels of 1 layers")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_with_the_image_s_own_values_absorbs(mode):
    model = Offset(kernel=3, padding=1, mode=mode)
    output = model(DATA[7]).detach()
    assert bias_absorption(work_on(calibrated(model, WT8))) == "2 channels of 1 layers"
    assert difference(output, model(DATA[7])) < 1e-5


def test_channels_that_reach_a_ceiling_keep_their_offset_and_others_lose_it():
    model = Offset(activation=lambda x: F.hardtanh(x, 0.0, 14.0))
    wrapped = calibrated(model, WT8)
    one = layer(wrapped, "one")
    amount = absorbable(one, Measured(wrapped.module, CALLS).outputs[one])
    assert amount[0] > 3
    assert amount[1:].tolist() == [0.0, 0.0, 0.0]
