"""Rules and edges of a preset, seen in the layers of a network."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import edgeq
from edgeq import SpecError
from tests.networks import batches, network


def weight_bits(preset, model=None):
    """Bits of each layer's weight; a layer that stays float is not there."""
    prepared = edgeq.PTCFxModule(model or network("residual"), preset).module
    return {layer.site.name: layer.weight_quantizer.spec.bits for layer in prepared.quantized_layers()}


def activation_bits(preset):
    prepared = edgeq.PTCFxModule(network("residual"), preset).module
    return {tensor.name: tensor.spec.bits for tensor in prepared.quantizers()}


def test_by_type_pattern_and_name():
    four, five, six = ({"bits": bits} for bits in (4, 5, 6))
    assert weight_bits({"rules": [{"type": "Conv2d", "weight": four}]}) == {"conv1": 4, "conv2": 4, "fc": 8}
    assert weight_bits({"rules": [{"type": "conv", "weight": four}]}) == {"conv1": 4, "conv2": 4, "fc": 8}
    assert weight_bits({"rules": [{"type": "linear", "weight": four}]}) == {"conv1": 8, "conv2": 8, "fc": 4}
    assert weight_bits({"rules": [{"type": "*", "weight": four}]}) == {"conv1": 4, "conv2": 4, "fc": 4}
    assert weight_bits({"rules": [{"pattern": r".*\d", "weight": five}]}) == {"conv1": 5, "conv2": 5, "fc": 8}
    all_three = [
        {"type": "*", "weight": four},
        {"pattern": r"conv\d", "weight": five},
        {"name": "conv2", "weight": six},
    ]
    for rules in (all_three, all_three[::-1]):
        assert weight_bits({"rules": rules}) == {"conv1": 5, "conv2": 6, "fc": 4}


def test_a_name_stands_for_all_below_it():
    rules = [{"name": "depth", "weight": {"bits": 4}}]
    bits = weight_bits({"rules": rules}, network("separable"))
    assert bits == {"stem.0": 8, "expand.0": 8, "depth.0": 4, "project.0": 8, "classifier": 8}


def test_a_rules_activation_is_that_of_what_the_layer_gives():
    rules = [{"name": "conv1", "activation": {"bits": 5}}, {"type": "avg_pool", "activation": {"bits": 6}}]
    bits = activation_bits({"rules": rules})
    assert {key: value for key, value in bits.items() if value != 8} == {"conv1": 5, "pool": 6}


@pytest.mark.parametrize("rule", [{"name": "conv2"}, {"pattern": "conv2|bn2"}])
def test_a_layer_left_in_float_computes_what_it_did(rule):
    wrapped = edgeq.PTCFxModule(network("residual"), {"rules": [{**rule, "quantize": False}]}).calibrate(batches())
    assert [layer.site.name for layer in wrapped.module.quantized_layers()] == ["conv1", "fc"]
    assert torch.equal(wrapped.module.conv2.weight, network("residual").conv2.weight)
    assert f"stays float by the rule for '{next(iter(rule.values()))}'" in wrapped.explain()


def test_a_name_that_fits_nothing_is_refused_with_the_nearest():
    with pytest.raises(SpecError) as error:
        weight_bits({"rules": [{"name": "conv3", "weight": {"bits": 4}}]})
    assert str(error.value).startswith(
        "The rule for 'conv3' fits no layer of the model. Did you mean 'conv2'? (Known: "
    )


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.conv(functional.conv2d(x, self.weight)).add(1.0)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("conv2d", {"conv2d": 4, "conv": 8}), ("Conv2d", {"conv2d": 8, "conv": 4}), ("conv", {"conv2d": 4, "conv": 4})],
)
def test_a_type_is_a_class_a_function_or_an_operator_of_the_table(kind, bits):
    assert weight_bits({"rules": [{"type": kind, "weight": {"bits": 4}}]}, Functional()) == bits


@pytest.mark.parametrize("net", ["residual", "separable"])
def test_a_plus_b_puts_b_at_the_input_the_first_convolution_and_the_last_linear_layer(net):
    wrapped = edgeq.PTCFxModule(network(net), "WC4_AT8+WC8SYMP2_AT8SYMP2").calibrate(batches())
    layers, inner = wrapped.module.quantized_layers(), wrapped.module.quantizers()[1:]
    bits = [layer.weight_quantizer.spec.bits for layer in layers]
    assert bits == [8] + [4] * (len(bits) - 2) + [8]
    first = wrapped.module.quantizers()[0]
    assert (first.name, int(first.zero_point), float(torch.frexp(first.scale)[0])) == ("x", 0, 0.5)
    assert not any(tensor.spec.symmetric for tensor in inner)


def test_a_plus_a_is_a():
    image = batches(1, 5)[0]
    once, twice = (
        edgeq.PTCFxModule(network("residual"), name).calibrate(batches()) for name in ("DEFAULT", "DEFAULT+DEFAULT")
    )
    assert torch.equal(once(image), twice(image))
