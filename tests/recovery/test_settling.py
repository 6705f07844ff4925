"""What was learned is written into the network, and can be taken back."""

import torch

from edgeq.recovery.free_weight import FreeWeight
from edgeq.recovery.learning_unit import LearningUnit
from edgeq.recovery.settling import Settled
from edgeq.recovery.soft_rounding import SoftRounding
from edgeq.recovery.units import layer_units
from tests.recovery.learning import DATA, calibrated, changed
from tests.states import snapshot

CALL = ((DATA[0],), {})


def learned(model, form, seed=0):
    """The second layer of a network, and its unit with weights, biases and scales that are all moved somewhere."""
    unit = LearningUnit(model.module, layer_units(model.module, CALL)[1], until_quantized=False)
    (layer,) = unit.layers
    weight = unit.weights[layer] = form(layer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor, _ in weight.parameters:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        for activation in unit.activations.values():
            activation.learn().fill_(0.25)
    return layer, unit


def free(layer):
    return FreeWeight(layer, has_own_bias=True)


def test_codes_scales_and_bias_are_those_that_were_learned():
    model = calibrated()
    layer, unit = learned(model, free)
    weight = unit.weights[layer]
    target = layer.site.target.scale.clone()
    bias = layer.folded(layer.weight, layer.bias)[1].detach().clone()
    Settled(unit)
    deployed, moved = layer.folded(layer.weight, layer.bias)
    assert torch.equal(layer.weight_quantizer.codes(deployed), weight.codes())
    assert torch.equal(layer.weight_quantizer.scale, weight.scale)
    assert torch.equal(layer.site.target.scale, target * torch.tensor(0.25).exp())
    assert torch.allclose(moved, weight.bias, atol=1e-6)
    assert torch.allclose(layer.bias_shift, weight.bias - bias, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(model(DATA[0]), model.convert()(DATA[0]))
        float_output = model.module.run_float(DATA[0])
        assert torch.allclose(float_output, calibrated().module.run_float(DATA[0]), atol=1e-5)  # it stays what it was


def test_codes_of_weights_beyond_the_range_are_kept_too():
    """Their nearest integer lies outside of it, so that the offset from it is more than from the nearest code."""
    model = calibrated(preset={"inherits": "WC4_AT8", "recovery": [], "weight": {"range_max": 0.1}})
    layer, unit = learned(model, free)
    weight = unit.weights[layer]
    with torch.no_grad():
        weight.theta.zero_()
        weight.real.mul_(0.3)
    nearest = (layer.folded(layer.weight, None)[0] / layer.weight_quantizer.scale.reshape(-1, 1, 1, 1)).round()
    assert int(((nearest > 9) & (weight.codes() < 7)).sum()) > 3
    Settled(unit)
    assert torch.equal(layer.weight_quantizer.codes(layer.folded(layer.weight, None)[0]), weight.codes())


def test_it_is_undone_to_the_last_bit():
    for form in (free, SoftRounding.of):
        model = calibrated(preset={"inherits": "WC4_AT8"})
        before = snapshot(model)
        _, unit = learned(model, form)
        settled = Settled(unit)
        assert changed(before, snapshot(model)) >= {"offset", "scale"}
        settled.undo()
        assert not changed(before, snapshot(model))


def test_offsets_that_are_undone_are_zeros():
    model = calibrated()
    before = snapshot(model)
    _, unit = learned(model, SoftRounding.of)
    Settled(unit).undo()
    after = snapshot(model)
    (added,) = after.keys() - before.keys()
    assert not after[added].any()
    with torch.no_grad():
        assert torch.equal(model(DATA[0]), calibrated()(DATA[0]))
