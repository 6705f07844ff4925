"""The pull on weights towards their codes, against its closed form."""

import copy

import pytest
import torch
from torch import nn

import edgeq
from edgeq.modules.dampening import dampened, rounding_error


def test_the_gradient_of_the_squared_error_comes_beside_the_one_that_there_is():
    weight = torch.tensor([0.26, -0.9, 1.3], requires_grad=True)
    error = torch.tensor([0.24, -0.1, 0.0])  # the last one is clipped
    output = dampened(weight, error, 3.0)
    assert torch.equal(output, weight)
    (5.0 * output).sum().backward()
    assert weight.grad.tolist() == pytest.approx([5 - 6 * 0.24, 5 + 6 * 0.1, 5.0])


def preset(granularity="channel"):
    return {"weight": {"bits": 4, "granularity": granularity}}


def trained(model, granularity="tensor"):
    wrapped = edgeq.QATFxModule(model, preset(granularity), total_epochs=4).train()
    torch.manual_seed(0)
    for _ in range(2):
        wrapped(torch.randn(8, 3, 6, 6))
    return wrapped


def layer_of(wrapped):
    return wrapped.module.quantized_layers()[0]


def beside_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    return model.train()


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("live", [True, False])
def test_the_error_is_that_of_rounding_in_units_of_the_layers_own_weight(live, granularity):
    layer = layer_of(trained(beside_norm(), granularity))
    layer.site.norm.training = live
    norm, quantizer = layer.site.norm, layer.weight_quantizer
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).reshape(-1, 1, 1, 1)
    scale = quantizer.scale.reshape(-1, 1, 1, 1)
    codes = (layer.weight * factor / scale).round().clamp(quantizer.codes_min, quantizer.codes_max)
    inside = (layer.weight * factor >= quantizer.codes_min * scale) & (
        layer.weight * factor <= quantizer.codes_max * scale
    )
    expected = torch.where(inside & (factor != 0), codes * scale / factor - layer.weight, 0.0)
    found = rounding_error(layer)
    assert torch.allclose(found, expected, atol=1e-6)
    assert found[2].abs().max() == 0.0
    assert found[0].abs().max() > 1e-3


@pytest.mark.parametrize("live", [True, False])
def test_a_training_step_pulls_the_parameter_by_twice_the_strength_times_its_error(live):
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    wrapped, gradients = trained(beside_norm()), []
    if not live:
        wrapped.freeze(True, True)
    for strength in (0.0, 0.25):
        model = copy.deepcopy(wrapped)
        layer = layer_of(model)
        layer.dampening = strength
        model(x).sin().sum().backward()
        gradients.append(layer.weight.grad)
    expected = rounding_error(layer_of(wrapped)) * 0.5
    assert float(expected.abs().max()) > 1e-2
    assert torch.allclose(gradients[0] - gradients[1], expected, atol=1e-4)


def test_without_gradients_nothing_is_computed_for_it():
    layer = layer_of(trained(beside_norm()))
    layer.dampening = 1.0
    with torch.no_grad():
        assert layer.latent is layer.weight
    layer.dampening = 0.0
    assert layer.latent is layer.weight
