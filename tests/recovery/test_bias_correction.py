"""What the rounding of weights adds to a channel's mean is taken off its bias."""

import pytest
import torch
from torch import nn

from edgeq.recovery.bias_correction import bias_correction
from edgeq.recovery.measured import look
from tests.recovery.uneven import DATA, Chain, calibrated, work_on

W4 = {"inherits": "WC4_AT8", "recovery": []}


def mean_errors(wrapped):
    """What the rounding of weights and the bias's shift come to in each layer, on the float network's inputs."""
    total = {}

    def take(layer, x, output):
        weight, _ = layer.folded(layer.weight, layer.bias)
        answer = layer.operation(x, layer.weight_quantizer(weight) - weight, None)
        error = answer.transpose(0, layer.operation.channel_axis).flatten(1).mean(1) + layer.bias_shift
        total[layer.site.name] = total.get(layer.site.name, 0) + error / len(DATA)

    look(wrapped.module, [((x,), {}) for x in DATA], take)
    return {name: float(error.square().mean().sqrt()) for name, error in total.items()}


@pytest.mark.parametrize(("analytic", "left"), [(True, 0.5), (False, 0.2)])
def test_it_takes_the_mean_error_of_rounding_off(analytic, left):
    wrapped = calibrated(Chain(), W4)
    before = mean_errors(wrapped)
    note = bias_correction(work_on(wrapped), analytic=analytic)
    assert note == f"4 layers, {3 if analytic else 0} of them analytically"
    after = mean_errors(wrapped)
    assert all(after[name] < left * before[name] for name in before)


def test_what_calibration_had_added_is_replaced():
    shifts = []
    for factor in (0.0, 1.0):
        wrapped = calibrated(Chain(), W4, bias_calibration_factor=factor)
        bias_correction(work_on(wrapped))
        shifts.append([layer.bias_shift.clone() for layer in wrapped.module.quantized_layers()])
    for one, other in zip(*shifts, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_float_network_stays_and_the_quantized_one_gains():
    model = Chain()
    expected = model(DATA[7]).detach()
    wrapped = calibrated(model, W4)
    (step,) = wrapped.recover(DATA, ["bias_correction"]).steps
    assert step.gain > 1
    assert torch.allclose(wrapped.module.run_float(DATA[7]), expected, atol=1e-5)


def test_layers_without_a_bias_are_left_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1))
    assert bias_correction(work_on(calibrated(model, W4))) == "1 layers, 0 of them analytically"
