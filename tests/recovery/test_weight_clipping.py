"""Few far weights do not set the scale; the float weights stay."""

import pytest
import torch
from torch import nn

from edgeq.recovery.weight_clipping import best_scale, weight_clipping
from tests.recovery.uneven import DATA, Chain, calibrated, decibels, layer, work_on

W4 = {"inherits": "WC4_AT8", "recovery": []}
T4 = {"inherits": "WC4_AT8", "recovery": [], "weight": {"granularity": "tensor"}}


def with_far_weights():
    """A chain in which one weight of each output of the third layer, that reads a channel of zeros, is far out."""
    model = Chain()
    with torch.no_grad():
        model.norm2.weight[3], model.norm2.bias[3] = 0.0, -1.0
        model.conv3.weight[:, 3] = 4 * model.conv3.weight.abs().amax()
    return model


@pytest.mark.parametrize("preset", [W4, T4], ids=["channel", "tensor"])
def test_a_far_weight_that_no_output_feels_is_clipped(preset):
    model = with_far_weights()
    expected, weights = model(DATA[7]).detach(), {key: value.clone() for key, value in model.state_dict().items()}
    wrapped = calibrated(model, preset)
    scale = layer(wrapped, "conv3").weight_quantizer.scale.clone()
    (step,) = wrapped.recover(DATA, ["weight_clipping"]).steps
    assert step.gain > 3
    ratio = layer(wrapped, "conv3").weight_quantizer.scale / scale
    assert ratio.mean() < 0.65
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert decibels(expected, wrapped.module.run_float(DATA[7])) > 100
    assert torch.equal(wrapped.convert()(DATA[7]), wrapped(DATA[7]))


@torch.no_grad()
@pytest.mark.parametrize("compensates", [False, True])
def test_the_scale_is_that_of_the_least_error_of_the_outputs(compensates):
    """Of all scales of fractions of the range, tried one by one on the layer itself."""
    wrapped = calibrated(Chain(), W4)
    conv = layer(wrapped, "conv1")
    x = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    best = best_scale(conv, x, compensates)
    weight, _ = conv.folded(conv.weight, None)
    errors = []
    if not compensates:
        for fraction in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
            scale = conv.weight_quantizer.scale_of(*(end * fraction for end in conv.weight_quantizer.measure(weight)))
            rounded = torch.round(weight / scale[:, None, None, None]).clamp(-8, 7) * scale[:, None, None, None]
            errors.append((conv.operation(x, rounded - weight, None).square().mean((0, 2, 3)), scale))
        table = torch.stack([error for error, _ in errors])
        chosen = torch.stack([(scale == best).float() for _, scale in errors]).argmax(0)
        assert (table.gather(0, chosen[None]) <= 1.05 * table.amin(0)).all()
    assert (best <= conv.weight_quantizer.scale).all()
    assert (best < conv.weight_quantizer.scale).any()


def test_deviations_bound_the_range():
    model = with_far_weights()
    wrapped = calibrated(model, T4)
    conv = layer(wrapped, "conv3")
    weight, _ = conv.folded(conv.weight, conv.bias)
    before = conv.weight_quantizer.scale.item()
    note = weight_clipping(work_on(wrapped), deviations=2.0)
    mean, deviation = weight.mean(), weight.std(correction=0)
    low, high = torch.maximum(mean - 2 * deviation, weight.amin()), torch.minimum(mean + 2 * deviation, weight.amax())
    assert conv.weight_quantizer.scale.item() == pytest.approx(max(-low.item() / 8, high.item() / 7), rel=1e-5)
    assert conv.weight_quantizer.scale.item() < before
    assert "in 4 layers" in note


def test_powers_of_two_stay_powers_of_two():
    wrapped = calibrated(with_far_weights(), {"inherits": "WT8SYMP2_AT8SYMP2", "recovery": []})
    weight_clipping(work_on(wrapped))
    for found in wrapped.module.quantized_layers():
        exponent = found.weight_quantizer.scale.log2()
        assert torch.equal(exponent, exponent.round())


@torch.no_grad()
def test_a_bias_still_fits_its_integers():
    """The scale is no smaller than what 16 bits for the bias need."""
    model = Chain()
    model.conv3.bias += 50.0
    wrapped = calibrated(model, W4)
    conv = layer(wrapped, "conv3")
    for found in wrapped.module.quantized_layers():
        found.site.bias_bits = 16
        found.finish()
    weight_clipping(work_on(wrapped), deviations=0.1)
    _, bias = conv.folded(conv.weight, conv.bias)
    assert (bias.abs() / conv.accumulator_scale).amax() <= 2**15
    assert conv.weight_quantizer.scale.amin() > 0


def test_transposed_layers_are_clipped_by_the_error_of_their_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 3, groups=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2, groups=2))
    wrapped = calibrated(model, W4)
    assert "in 2 layers" in weight_clipping(work_on(wrapped))
    assert torch.equal(wrapped.convert()(DATA[7]), wrapped(DATA[7]))
