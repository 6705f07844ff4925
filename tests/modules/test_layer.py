"""The three forms of a quantized layer agree, and its scales are those of what is deployed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edgeq
from tests.modules.oracle import calibrated
from tests.networks import NETWORKS, batches, network

IMAGE = batches(1, seed=9)[0]
POWERS = ("WC8SYMP2_AT8SYMP2", "WT8SYMP2_AT8SYMP2", "WC8P2_AT8P2")


def outputs(wrapped, image=IMAGE):
    with torch.no_grad():
        return wrapped(image)


# ---- the three forms


@pytest.mark.parametrize("name", NETWORKS)
def test_the_float_form_is_the_users_network(name):
    model = network(name)
    expected = model(IMAGE)
    wrapped = edgeq.PTCFxModule(model).calibrate(batches())
    with torch.no_grad():  # batch norms are folded
        assert torch.allclose(wrapped.module.run_float(IMAGE), expected, atol=1e-5)
    found = wrapped.module.run_float(IMAGE)  # they are not; and what calibration added to the biases is taken away
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(outputs(wrapped), expected, atol=1e-5)


@pytest.mark.parametrize("preset", POWERS)
@pytest.mark.parametrize("name", NETWORKS)
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 9999))
def test_with_powers_of_two_the_simulated_form_is_the_exact_one_bit_for_bit(name, preset, seed):
    wrapped = edgeq.PTCFxModule(network(name, seed), preset).calibrate(batches(seed=seed))
    image = batches(1, seed=seed + 1)[0]
    expected = outputs(wrapped, image)
    for layer in wrapped.module.quantized_layers():
        layer.train()  # what trains is simulated
    assert torch.equal(wrapped(image), expected)
    assert torch.equal(wrapped.convert()(image), expected)


@pytest.mark.parametrize("preset", ["WC8_AT8", "WC4_AT8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_with_free_scales_the_simulated_form_is_off_by_a_step_in_few_places(name, preset):
    differing = steps = 0
    for seed in range(10):
        wrapped = edgeq.PTCFxModule(network(name, seed), preset).calibrate(batches(seed=seed))
        for layer in wrapped.module.quantized_layers():
            x = torch.randn(4, *SHAPES[type(layer).__name__](layer))
            x = layer.site.source(x)
            with torch.no_grad():
                exact = layer(x)
                exact = exact if not hasattr(exact, "edgeq_quantizer") else exact * layer.site.target.scale
            off = ((layer.train()(x) - exact) / layer.site.target.scale).abs().round()
            assert off.max() <= 1
            differing, steps = differing + int(off.sum()), steps + off.numel()
    assert differing <= 2e-4 * steps


SHAPES = {
    "QuantizedConv2d": lambda layer: (layer.in_channels, 6, 6),
    "QuantizedLinear": lambda layer: (layer.in_features,),
}


def assert_never_differs(seeds):
    for seed in seeds:
        name = sorted(NETWORKS)[seed % len(NETWORKS)]
        preset = ("WC8_AT8", "WC4M4_AT8", "MSA_WC8P2_AT8P2", "WC8SYMP2_AT8SYMP2R4")[seed % 4]
        wrapped = edgeq.PTCFxModule(network(name, seed), preset).calibrate(batches(1, seed=seed))
        image = batches(1, seed=seed + 1, size=2)[0]
        assert torch.equal(wrapped.convert()(image), outputs(wrapped, image)), seed


def test_the_exact_form_is_the_converted_network_bit_for_bit():
    assert_never_differs(range(24))


@pytest.mark.sweep
def test_the_exact_form_is_the_converted_network_over_a_thousand_seeds():
    assert_never_differs(range(1000))


# ---- scales


def test_the_scale_of_a_weight_is_that_of_the_weight_with_its_norm_folded_in():
    model = network("residual")
    wrapped = edgeq.PTCFxModule(model, bias_calibration_factor=0).calibrate(batches())
    factor = model.bn1.weight / (model.bn1.running_var + model.bn1.eps).sqrt()
    deployed = (model.conv1.weight * factor[:, None, None, None]).flatten(1)
    expected = torch.maximum(-deployed.amin(1) / 128, deployed.amax(1) / 127)
    layer = wrapped.module.conv1
    assert torch.allclose(layer.weight_quantizer.scale, expected, rtol=1e-5)
    codes = layer.weight_quantizer.codes(layer.folded(layer.weight, layer.bias)[0]).flatten(1)
    assert ((codes.amax(1) == 127) | (codes.amin(1) == -128)).all()
    bias = model.bn1.bias - model.bn1.running_mean * factor
    step = expected * layer.site.source.scale
    assert torch.allclose(layer.bias_codes(layer.folded(layer.weight, layer.bias)[1]), bias / step, atol=0.51)


def test_weights_that_are_all_zero_stay_zero_and_leave_the_bias():
    module = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        module.weight[:2].zero_()
        module.bias.copy_(torch.tensor([1.0, -2.0, 0.5, 0.0]))
    wrapped = calibrated(module, x=torch.randn(4, 3, 6, 6))
    found, step = outputs(wrapped, torch.randn(2, 3, 6, 6)), wrapped.module.quantized_layers()[0].site.target.scale
    assert torch.isfinite(found).all()
    assert (found[:, 0] - 1.0).abs().max() <= step
    assert (found[:, 1] + 2.0).abs().max() <= step
