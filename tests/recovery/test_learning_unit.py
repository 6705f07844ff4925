"""A unit that has learned nothing yet gives what the network gives; what learns takes the place of its layers."""

import pytest
import torch

from edgeq.recovery.learning_unit import LearningUnit
from edgeq.recovery.soft_rounding import SoftRounding
from edgeq.recovery.unit_samples import samples_of
from edgeq.recovery.units import block_units, layer_units
from tests.networks import NETWORKS
from tests.recovery.learning import DATA, calibrated

CALL = ((DATA[0],), {})


def values_of(prepared, nodes):
    """What the nodes of the quantized network give."""
    from edgeq.recovery.unit_samples import _Recording

    with torch.no_grad():
        return _Recording(prepared, nodes).of(CALL)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("how", [layer_units, block_units])
def test_it_simulates_the_unit_in_the_network(name, how):
    """But for the rounding of float arithmetic, which moves a value that lies between two codes by a step."""
    prepared = calibrated(name).module
    for unit in how(prepared, CALL):
        (sample,) = samples_of(prepared, unit, [CALL], with_real=False)
        with torch.no_grad():
            found = LearningUnit(prepared, unit, until_quantized=False).outputs(sample.quantized)
        for one, other in zip(found, values_of(prepared, unit.outputs), strict=True):
            assert torch.isclose(one, other, atol=1e-5).double().mean() > 0.999, unit.name


def test_until_quantized_the_outputs_are_real_and_clipped():
    prepared = calibrated().module
    unit = layer_units(prepared, CALL)[0]
    (sample,) = samples_of(prepared, unit, [CALL], with_real=False)
    with torch.no_grad():
        real, quantized = (LearningUnit(prepared, unit, until).outputs(sample.quantized)[0] for until in (True, False))
    step = prepared.quantized_layers()[0].site.target.scale
    assert float(real.min()) == 0.0
    assert len(quantized.unique()) <= 16 < len(real.unique())
    inside = real < 14.5 * step
    assert float((real - quantized)[inside].abs().max()) <= float(step) * 0.501


def test_a_weight_that_learns_takes_the_place_of_the_layers_own():
    prepared = calibrated().module
    unit = layer_units(prepared, CALL)[0]
    (sample,) = samples_of(prepared, unit, [CALL], with_real=False)
    learning = LearningUnit(prepared, unit, until_quantized=True)
    (layer,) = learning.layers
    learning.weights[layer] = SoftRounding.of(layer)
    weight, bias = (value.detach() for value in layer.folded(layer.weight, layer.bias))
    expected = layer.operation(sample.quantized[0], weight, layer.quantized_bias(bias)).relu()
    found = learning.outputs(sample.quantized)[0]
    assert torch.allclose(found, expected, atol=1e-3)  # soft rounding begins at the weight itself
    assert found.requires_grad
    (slope,) = torch.autograd.grad(found.sum(), learning.weights[layer].alpha)
    assert bool(slope.any())


def test_no_gradient_reaches_the_networks_own_parameters():
    prepared = calibrated("attention").module
    for unit in block_units(prepared, CALL):
        (sample,) = samples_of(prepared, unit, [CALL], with_real=False)
        learning = LearningUnit(prepared, unit, until_quantized=False)
        learning.weights.update({layer: SoftRounding.of(layer) for layer in learning.layers})
        alphas = [weight.alpha for weight in learning.weights.values()]
        loss = sum(output.square().sum() for output in learning.outputs(sample.quantized))
        slopes = torch.autograd.grad(loss, alphas)
        assert all(bool(slope.any()) for slope in slopes)
    assert all(parameter.grad is None for parameter in prepared.parameters())
