"""Which range each preset gives an activation, against closed forms and searches written out here."""

import numpy as np
import pytest
import torch
from torch import nn

import edgeq
from edgeq.arithmetic import fake_quantize
from tests.networks import network
from tests.test_preset_effects import SYMMETRIC, calibrated


def input_quantizer(wrapped):
    return next(tensor for tensor in wrapped.module.quantizers() if tensor.name == "x")


def test_msa_keeps_the_extremes_and_the_plain_preset_cuts_a_ten_thousandth_off_each_end():
    wrapped, data = calibrated("MSA_WC8_AT8")
    low, high = data.min(), data.max()
    kept = input_quantizer(wrapped)
    assert torch.equal(kept.scale, high / 255 - low / 255)
    assert int(kept.zero_point) == -int(torch.round(low / kept.scale))

    low, high = np.quantile(data.numpy(), [1e-4, 1 - 1e-4])
    cut = input_quantizer(calibrated("WC8_AT8")[0])
    assert float(cut.scale) == pytest.approx((high - low) / 255, rel=0.01)
    assert float(kept.scale) > 2.5 * float(cut.scale)


def test_in_training_too_msa_sees_a_peak_that_the_plain_preset_leaves_out():
    torch.manual_seed(0)
    batch = torch.randn(64, 3, 16, 16)
    batch.view(-1)[1] = 50.0  # among 49152 values, of which about 10000 are looked at
    scales = {}
    for name in ("WC8_AT8", "MSA_WC8_AT8"):
        wrapped = edgeq.QATFxModule(network("residual"), name, total_epochs=4).train()
        wrapped(batch)
        scales[name] = input_quantizer(wrapped).scale
    assert torch.equal(scales["MSA_WC8_AT8"], batch.max() / 255 - batch.min() / 255)
    assert scales["WC8_AT8"] < 10 / 255


def squared_error(x, low, high):
    scale = (high - low) / 255
    zero_point = torch.round(-low / scale).to(torch.int32)
    return float((fake_quantize(x, scale, zero_point, 0, 255) - x).double().square().mean())


def test_the_default_finds_the_range_of_least_squared_error():
    wrapped, data = calibrated("DEFAULT")
    quantizer = input_quantizer(wrapped)
    own = float((quantizer_output(quantizer, data) - data).double().square().mean())
    low, high, sample = data.min(), data.max(), data.reshape(-1)[::7]
    sample = torch.cat([sample, data[data.abs() > 5]])  # the peaks are what the search is about
    fractions = torch.linspace(0.2, 1, 33)
    best = min((squared_error(sample, low * a, high * b), float(a), float(b)) for a in fractions for b in fractions)
    searched = squared_error(data, low * best[1], high * best[2])
    assert own <= 1.02 * searched
    for name in ("WC8_AT8", "MSA_WC8_AT8"):
        other = input_quantizer(calibrated(name)[0])
        assert float((quantizer_output(other, data) - data).double().square().mean()) > 1.2 * own


def quantizer_output(quantizer, x):
    return fake_quantize(x, quantizer.scale, quantizer.zero_point, 0, 255)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_activations_are_signed_only_where_something_is_negative(name):
    wrapped, _ = calibrated(name)
    ends = {tensor.name: (int(tensor.quant_min), int(tensor.quant_max)) for tensor in wrapped.module.quantizers()}
    assert {ends[key] for key in ("x", "conv2", "fc")} == {(-128, 127)}
    assert {ends[key] for key in ("conv1", "pool", "mean")} == {(0, 255)}
    assert {int(tensor.zero_point) for tensor in wrapped.module.quantizers()} == {0}


class Difference(nn.Module):
    """A quarter of the first channel less half of the second, where that is positive."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 1, bias=False)
        self.conv.weight.data.copy_(torch.tensor([0.25, -0.5]).reshape(1, 2, 1, 1))

    def forward(self, x):
        return torch.relu(self.conv(x))


def test_after_a_relu_a_symmetric_preset_uses_all_256_codes():
    ramp = torch.arange(256) / 256
    x = torch.stack([torch.cat([ramp, 0 * ramp]), torch.cat([0 * ramp, ramp])]).reshape(1, 2, 16, 32)
    wrapped = edgeq.PTCFxModule(Difference(), {"inherits": "WC8SYMP2_AT8SYMP2", "activation": {"observer": "minmax"}})
    converted = wrapped.calibrate([x]).convert()
    layer = converted.module.get_submodule("conv")
    codes = layer(layer.source.encode(x))
    assert codes.dtype == torch.uint8
    assert torch.equal(codes.reshape(-1), torch.cat([torch.arange(256), torch.zeros(256)]).to(torch.uint8))
    assert float(layer.target.scale) == 2**-10
    assert torch.equal(converted(x), torch.relu(x[:, :1] / 4 - x[:, 1:] / 2))
