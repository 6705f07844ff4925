"""Configuration: which preset holds where. What several rules make of one value, and what a conversion may leave in
float, is in test_configuration_of_values.py.

Tested elsewhere, word for word: None, class, function, pattern and name, and which of them wins
(tests/test_qconfig_mapping.py, tests/test_preset_rules.py, tests/test_spec.py); rules in files
(tests/test_presets*.py); the limits of backends on bits, ranges, weights and biases, and unknown backends
(tests/test_backends.py, tests/test_backend_effects.py).
"""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeq import QConfigMapping, SpecError, prepare_fx, prepare_qat_fx
from tests.graph.parity import assert_exact, calibrated, images
from tests.networks import network
from tests.scenarios.wired import quantizers


def bits(count):
    return {"inherits": "WC8_AT8", "weight": {"bits": count}}


def weight_bits(prepared):
    """Bits of each layer's weight by name; what stays float is not there."""
    return {layer.site.name: layer.weight_quantizer.spec.bits for layer in prepared.module.quantized_layers()}


class Inner(nn.Module):
    """Three calls of linear layers, two of them functional, and sums in between."""

    def __init__(self):
        super().__init__()
        self.weight, self.linear = nn.Parameter(torch.eye(4)), nn.Linear(4, 4)

    def forward(self, x):
        x = F.linear(x, self.weight) + x
        x = self.linear(x).add(x)
        return F.linear(x, self.weight)


class Middle(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.inner = nn.Parameter(torch.eye(4)), Inner()

    def forward(self, x):
        return F.linear(self.inner(F.linear(x, self.weight)), self.weight) + x


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.middle, self.head = Middle(), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.middle(x))


LAYERS = {
    "middle.linear": "a function",
    "middle.inner.linear_1": "a function",
    "middle.inner.linear": "a module",
    "middle.inner.linear_2": "a function",
    "middle.linear_3": "a function",
    "head": "a module",
}  # in the order in which they are called


def outer(mapping, prepare=prepare_fx):
    """The bits of the weights of all layers that are quantized, in the order in which they are called."""
    found = weight_bits(prepare(Outer(), mapping))
    return [found[name] for name in LAYERS if name in found]


@pytest.mark.parametrize("prepare", [prepare_fx, prepare_qat_fx])
@pytest.mark.parametrize(
    ("scope", "kind", "index", "chosen"),
    [
        ("", nn.Linear, 0, "head"),
        ("middle", F.linear, 0, "middle.linear"),
        ("middle", F.linear, 1, "middle.linear_3"),
        ("middle.inner", nn.Linear, 0, "middle.inner.linear"),
        ("middle.inner", F.linear, 0, "middle.inner.linear_1"),
        ("middle.inner", F.linear, 1, "middle.inner.linear"),  # the operator's name too: it counts modules as well
        ("middle.inner", "linear", 2, "middle.inner.linear_2"),
    ],
)
def test_one_call_of_a_type_in_a_module_can_be_chosen(prepare, scope, kind, index, chosen):
    for preset in (bits(4), None):
        mapping = QConfigMapping().set_module_name_object_type_order(scope, kind, index, preset)
        found = weight_bits(prepare(Outer(), mapping))
        expected = {name: 4 if name == chosen else 8 for name in LAYERS if name != chosen or preset is not None}
        assert found == expected


def test_a_chosen_call_wins_over_its_name_and_none_over_all_that_is_more_general():
    mapping = QConfigMapping().set_object_type("linear", bits(7)).set_module_name_regex(r"middle\..*", bits(6))
    mapping.set_module_name("middle.inner", bits(5))
    assert outer(mapping) == [6, 5, 5, 5, 6, 7]
    mapping.set_module_name_object_type_order("middle.inner", "linear", 1, bits(4))
    mapping.set_module_name_object_type_order("middle.inner", "linear", 2, None)
    assert outer(mapping) == [6, 5, 4, 6, 7]
    mapping.set_module_name("middle.inner.linear", bits(3))
    assert outer(mapping) == [6, 5, 4, 6, 7]


@pytest.mark.parametrize(
    ("kind", "floats"), [("add", ["add", "add_1"]), (F.linear, ["linear_1", "linear", "linear_2"])]
)
def test_functions_and_methods_can_be_chosen_within_a_module(kind, floats):
    mapping = QConfigMapping().set_global("WC8_AT8").set_object_type(kind, None, within="middle.inner")
    wrapped = calibrated(Outer().eval(), images(8, 4), preset=mapping.qconfig())
    name = kind if isinstance(kind, str) else kind.__name__
    reasons = [reason for reason in wrapped.module.reasons.values() if "by the rule" in reason]
    assert reasons == [f"stays float by the rule for {name!r} in 'middle.inner'"] * len(floats)
    layers = [f"middle.inner.{node}" for node in floats] if name == "linear" else []
    assert weight_bits(wrapped) == {layer: 8 for layer in LAYERS if layer not in layers}
    assert "middle_add_2" in quantizers(wrapped)  # the sum outside of it
    assert_exact(wrapped, images(8, 4))


def test_a_type_may_be_the_class_of_a_module_around_and_the_innermost_wins():
    mapping = QConfigMapping().set_object_type(Middle, bits(6)).set_object_type(Inner, bits(5))
    assert outer(mapping) == [6, 5, 5, 5, 6, 8]
    mapping.set_object_type(nn.Linear, bits(4))  # the layer's own class is nearer than any around it
    assert outer(mapping) == [6, 5, 4, 5, 6, 4]
    assert outer(QConfigMapping().set_object_type(Middle, None)) == [8]
    assert outer(QConfigMapping().set_global(None).set_object_type(Inner, bits(8))) == [8, 8, 8]


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (
            lambda m: m.set_module_name_object_type_order("middle", F.linear, 2, None),
            "The rule for 'linear' in 'middle', number 2 fits nothing that is called there. It calls linear (2), add",
        ),
        (
            lambda m: m.set_object_type("mul", None, within="middle.inner"),
            "The rule for 'mul' in 'middle.inner' fits nothing that is called there.",
        ),
        (
            lambda m: m.set_object_type("add", None, within="midle"),
            "The rule for 'add' in 'midle' fits no layer of",
        ),
        (
            lambda m: m.set_module_name_object_type_order("", "add", -1, None),
            "Rule.index must lie in 0..1000000",
        ),
        (
            lambda m: m.set_module_name_object_type_order("", 3, 0, None),
            "An object type is a module class, a function",
        ),
    ],
)
def test_what_fits_nothing_is_refused(add, message):
    with pytest.raises(SpecError) as error:
        prepare_fx(Outer(), add(QConfigMapping()))
    assert str(error.value).startswith(message)


def mapping_of_everything():
    mapping = QConfigMapping().set_global("MSA_WC8_AT8").set_object_type(nn.Linear, "WC4_AT8")
    mapping.set_object_type(torch.add, None).set_object_type(F.linear, bits(5), within="middle")
    mapping.set_module_name_regex(r".*inner\.linear", "WC8P2_AT8P2").set_module_name("head", None)
    return mapping.set_module_name_object_type_order("middle.inner", F.linear, 1, bits(6))


def test_a_mapping_goes_into_a_dict_and_comes_back():
    mapping = mapping_of_everything()
    data = mapping.to_dict()
    assert list(data) == ["", "object_type", "module_name_regex", "module_name", "module_name_object_type", ORDER]
    assert [entry[:-1] for entry in data["object_type"]] == [("Linear",), ("add",)]
    assert data["object_type"][1] == ("add", None)
    assert data[ORDER][0][:-1] == ("middle.inner", "linear", 1)
    for back in (QConfigMapping.from_dict(data), QConfigMapping.from_dict(json.loads(json.dumps(data)))):
        assert back == mapping
        assert back.qconfig().rules == tuple(sorted(mapping.qconfig().rules, key=back.qconfig().rules.index))
        assert prepare_fx(Outer(), back).explain() == prepare_fx(Outer(), mapping).explain()
    assert QConfigMapping.from_dict({"": None}).to_dict() == {"": None}
    assert QConfigMapping.from_dict({}) == QConfigMapping() != mapping


ORDER = "module_name_object_type_order"


def test_a_dict_takes_the_names_of_presets_and_the_types_themselves():
    data = {"": "WC8_AT8", "object_type": [(nn.Conv2d, bits(4))], "module_name": [("fc", None)]}
    assert weight_bits(prepare_fx(network("residual"), QConfigMapping.from_dict(data))) == {"conv1": 4, "conv2": 4}
    for wrong, message in (
        ({"object_types": []}, "Unknown key 'object_types' in the mapping. Did you mean 'object_type'?"),
        ({"module_name": ["fc"]}, "An entry of 'module_name' is a tuple (name, preset), got 'fc'."),
        ({ORDER: [("fc", nn.Linear, None)]}, f"An entry of '{ORDER}' is a tuple (name, type, index, preset), got"),
    ):
        with pytest.raises(SpecError) as error:
            QConfigMapping.from_dict(wrong)
        assert str(error.value).startswith(message)
