"""Four levels of presets, each stronger than the one before."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgeq import QConfigMapping, SpecError, convert_fx, load_preset, prepare_fx
from tests.networks import network
from tests.test_preset_rules import Functional


def weight_bits(mapping, model=None):
    prepared = prepare_fx(network("residual") if model is None else model, mapping)
    return {layer.site.name: layer.weight_quantizer.spec.bits for layer in prepared.module.quantized_layers()}


def bits(count):
    return {"inherits": "WC8_AT8", "weight": {"bits": count}}


def refusal(make):
    with pytest.raises(SpecError) as error:
        make()
    return str(error.value)


def test_each_level_is_stronger_than_the_one_before_in_whatever_order_they_are_set():
    levels = [
        lambda mapping: mapping.set_global(bits(4)),
        lambda mapping: mapping.set_object_type(nn.Conv2d, bits(5)),
        lambda mapping: mapping.set_module_name_regex("conv2|fc", bits(6)),
        lambda mapping: mapping.set_module_name("fc", bits(7)),
    ]
    expected = [
        {"conv1": 4, "conv2": 4, "fc": 4},
        {"conv1": 5, "conv2": 5, "fc": 4},
        {"conv1": 5, "conv2": 6, "fc": 6},
        {"conv1": 5, "conv2": 6, "fc": 7},
    ]
    for count in range(4):
        for order in (levels[: count + 1], levels[count::-1]):
            mapping = QConfigMapping()
            for level in order:
                assert level(mapping) is mapping
            assert weight_bits(mapping) == expected[count]


@pytest.mark.parametrize("kind", [nn.Linear, functional.linear, "linear", "Linear"])
def test_an_object_type_is_a_class_a_function_or_a_name(kind):
    mapping = QConfigMapping().set_global(bits(8)).set_object_type(kind, bits(4))
    assert weight_bits(mapping) == {"conv1": 8, "conv2": 8, "fc": 4}


def test_a_function_is_a_type_where_it_is_what_is_called():
    mapping = QConfigMapping().set_object_type(functional.conv2d, bits(4))
    assert weight_bits(mapping, Functional()) == {"conv2d": 4, "conv": 8}


def test_what_is_set_again_is_replaced():
    mapping = (
        QConfigMapping().set_module_name("fc", bits(4)).set_module_name("conv1", None).set_module_name("fc", bits(5))
    )
    assert weight_bits(mapping) == {"conv2": 8, "fc": 5}
    assert [rule.name for rule in mapping.rules] == ["fc", "conv1"]


def test_of_patterns_the_first_wins_and_of_names_the_deepest():
    patterns = QConfigMapping().set_module_name_regex("conv.*", bits(4)).set_module_name_regex(".*", bits(5))
    assert weight_bits(patterns) == {"conv1": 4, "conv2": 4, "fc": 5}
    names = QConfigMapping().set_module_name("depth", bits(4)).set_module_name("depth.0", bits(5))
    assert weight_bits(names, network("separable"))["depth.0"] == 5


@pytest.mark.parametrize(
    "leave",
    [
        lambda mapping: mapping.set_object_type(nn.Conv2d, None),
        lambda mapping: mapping.set_module_name_regex(r"conv\d", None),
        lambda mapping: mapping.set_module_name("conv1", None).set_module_name("conv2", None),
        lambda mapping: mapping.set_global(None).set_object_type(nn.Linear, "DEFAULT"),
        lambda mapping: mapping.set_global(None).set_module_name_regex("f.", "DEFAULT"),
        lambda mapping: mapping.set_global(None).set_module_name("fc", "DEFAULT"),
    ],
)
def test_none_leaves_float_what_it_is_set_for(leave):
    assert weight_bits(leave(QConfigMapping())) == {"fc": 8}


def test_a_mapping_that_leaves_everything_in_float_is_refused():
    for mapping in (QConfigMapping().set_global(None), QConfigMapping().set_global(None).set_module_name("fc", None)):
        assert refusal(mapping.qconfig).startswith("The mapping leaves everything in float: set a preset globally or")


def test_a_layer_gets_both_specs_of_its_preset_and_the_rest_the_global_ones():
    mapping = QConfigMapping().set_global("WC8_AT8").set_module_name("conv1", "WT8SYMP2_AT8SYMP2")
    module = prepare_fx(network("residual"), mapping).module
    own, rest = load_preset("WT8SYMP2_AT8SYMP2"), load_preset("WC8_AT8")
    assert [layer.weight_quantizer.spec for layer in module.quantized_layers()] == [
        own.weight,
        rest.weight,
        rest.weight,
    ]
    specs = {tensor.name: tensor.spec for tensor in module.quantizers()}
    assert specs.pop("conv1") == own.activation
    assert set(specs.values()) == {rest.activation}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QConfigMapping().set_global("WC8"), "Unknown preset 'WC8'. "),
        (lambda: QConfigMapping().set_module_name("fc", "WC9_AT8"), "Unknown preset 'WC9_AT8'. Did you mean"),
        (lambda: QConfigMapping().set_module_name("fc", "WC4_AT8+WC8_AT8"), "'WC4_AT8+WC8_AT8' has edges or rules: "),
        (lambda: QConfigMapping().set_module_name_regex("(", None), "The rule's pattern '(' is no regular expression"),
        (lambda: QConfigMapping().set_object_type(5, None), "An object type is a module class, a function or a name,"),
        (lambda: weight_bits(QConfigMapping().set_module_name("fcc", None)), "The rule for 'fcc' fits no layer of the"),
        (
            lambda: convert_fx(nn.Linear(2, 2)),
            "convert_fx takes what prepare_fx or prepare_qat_fx returned, got Linear.",
        ),
        (
            lambda: prepare_fx(network("residual"), None, torch.rand(1, 4, 8, 8)),
            "The model does not run on example_inputs",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    assert refusal(make).startswith(message)
