"""Configuration: what several rules make of one value, and what a second mapping leaves in float at the conversion."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeq import QConfigMapping, SpecError, convert_fx, prepare_fx, prepare_qat_fx
from edgeq.modules.float_layer import FloatLayer
from edgeq.modules.integer import IntegerLayer, IntegerMatmul
from tests.graph.parity import assert_exact, calibrated, images, relative_error
from tests.networks import batches, network
from tests.scenarios.wired import Wired, conv, folded, norm, quantizers


def left(name):
    return QConfigMapping().set_module_name(name, None).qconfig()


def test_a_rule_for_a_layer_is_that_of_what_is_folded_into_it():
    parts = {"conv": conv(), "norm": norm(), "last": conv()}
    model, x = Wired(lambda m, x: m.last(F.relu(m.norm(m.conv(x)))), **parts).eval(), images()
    mapping = QConfigMapping().set_module_name("conv", "WC4_AT8").set_object_type("relu", "WC8SYMP2_AT8SYMP2")
    whole = prepare_fx(model, mapping)
    assert folded(whole) == {"conv": "norm, clip 0..", "last": ""}
    assert [layer.weight_quantizer.spec.bits for layer in whole.module.quantized_layers()] == [4, 8]
    assert not whole.module.quantization.tensors.conv.spec.symmetric  # the convolution's, not the ReLU's
    for part, kept, names in (
        ("relu", "norm", ["x", "conv", "relu", "last"]),
        ("norm", "", ["x", "conv", "relu", "last"]),
        ("conv", None, ["conv", "norm", "last"]),  # the norm by itself reads integers
    ):
        partly = calibrated(model, x, preset=left(part))
        assert folded(partly).get("conv") == kept  # a fusion stops at what stays float
        assert quantizers(partly) == names
        assert partly.module.reasons[part] == f"stays float by the rule for {part!r}"
        assert_exact(partly, x)


def test_after_a_layer_in_float_a_value_is_quantized_where_it_is_read_as_integers():
    def function(m, x):
        return m.last(F.max_pool2d(m.first(x), 2).flatten(2).unsqueeze(2))

    model, x = Wired(function, first=conv(), last=conv()).eval(), images()
    assert quantizers(prepare_fx(model)) == ["x", "first", "last"]
    after = calibrated(model, x, preset=left("first"))
    assert quantizers(after) == ["max_pool2d", "last"]  # and the input is not
    assert_exact(after, x)
    assert quantizers(prepare_fx(model, left("last"))) == ["x", "first"]


def test_a_value_that_integers_and_float_read_has_one_quantizer():
    def function(m, x):
        y = m.stem(x)
        return m.first(y), m.second(y)

    model, x = Wired(function, stem=conv(), first=conv(), second=conv()).eval(), images()
    mapping = QConfigMapping().set_module_name("second", None).set_module_name("first", "WC4_AT8")
    wrapped = calibrated(model, x, preset=mapping.qconfig())
    assert quantizers(wrapped) == ["x", "stem", "first"]
    _, second = assert_exact(wrapped, x)
    with torch.no_grad():
        stem = wrapped.module.stem(wrapped.module.quantization.tensors.x(x))
        torch.testing.assert_close(second, model.second(stem))  # it reads what the integers stand for


def test_operations_that_read_one_value_get_ranges_of_their_own():
    def function(m, x):
        y = m.conv(F.relu(m.linear(x)))
        return y * x, y + x.sigmoid()

    model, x = Wired(function, linear=nn.Linear(8, 8), conv=conv()).eval(), images()
    wrapped = calibrated(model, x, bias_calibration_factor=0)
    assert quantizers(wrapped) == ["x", "linear", "conv", "mul", "sigmoid", "add"]
    for name, value in zip(("mul", "add"), model(x), strict=True):
        span = 255 * float(wrapped.module.quantization.tensors[name].scale)
        assert span == pytest.approx(float(value.detach().max() - value.detach().min()), rel=0.05)
    assert_exact(wrapped, x)


# ---- at the conversion

LEAVE = {
    "name": (lambda m: m.set_module_name("conv1", None), ["conv2", "fc"]),
    "class": (lambda m: m.set_object_type(nn.Linear, None), ["conv1", "conv2"]),
    "pattern": (lambda m: m.set_module_name_regex("conv.", None), ["fc"]),
    "place": (lambda m: m.set_module_name_object_type_order("", nn.Conv2d, 1, None), ["conv1", "fc"]),
    "all but one": (lambda m: m.set_global(None).set_module_name("conv2", "WC8_AT8"), ["conv2"]),
}


def prepared_network(name, prepare=prepare_fx):
    prepared = prepare(network(name), QConfigMapping().set_global("WC8_AT8")).train()
    for batch in batches():
        prepared(batch)
    return prepared.eval()


def integer_layers(converted):
    return [name for name, module in converted.module.named_modules() if isinstance(module, IntegerLayer)]


@pytest.mark.parametrize("prepare", [prepare_fx, prepare_qat_fx])
@pytest.mark.parametrize("kind", LEAVE)
def test_a_second_mapping_leaves_layers_in_float_after_calibration(kind, prepare):
    leave, kept = LEAVE[kind]
    prepared, image = prepared_network("residual", prepare), batches(1, 7)[0]
    before = convert_fx(prepared)(image)
    converted = convert_fx(prepared, leave(QConfigMapping().set_global("WC8_AT8")))
    assert integer_layers(converted) == kept
    others = {"conv1", "conv2", "fc"} - {*kept}
    assert {type(converted.module.get_submodule(name)) for name in others} == {FloatLayer}
    assert ("quantization_tensors_x" in converted.module.tensors) is ("conv1" in kept)  # who else would read it
    assert relative_error(converted(image), before) < 0.2
    assert torch.equal(convert_fx(prepared)(image), before)  # the prepared network is as it was


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = conv(3, 8), conv(8, 8), conv(8, 4)

    def forward(self, x):
        x = self.two(F.relu(self.one(x)))
        return self.three(F.relu(x + x.sigmoid()).flatten(2).unsqueeze(2))


@pytest.mark.parametrize("leave", [
    lambda m: m.set_module_name("one", None), lambda m: m.set_module_name("two", None),
    lambda m: m.set_module_name("three", None), lambda m: m.set_object_type("sigmoid", None),
    lambda m: m.set_object_type("add", None), lambda m: m.set_module_name("one", None).set_module_name("two", None),
])  # fmt: skip
def test_what_is_left_in_float_at_the_conversion_is_as_if_it_had_been_left_before(leave):
    x, mapping = images(4, 3, 6, 6), QConfigMapping().set_global("WC8_AT8")
    prepared, early = (
        prepare_fx(Chain().eval(), rules, bias_calibration_factor=0)
        for rules in (mapping, leave(copy.deepcopy(mapping)))
    )
    for wrapped in (prepared, early):
        wrapped(x)
    late, expected = convert_fx(prepared, leave(mapping)), convert_fx(early)
    assert integer_layers(late) == integer_layers(expected)
    torch.testing.assert_close(late(x), expected(x), rtol=1e-5, atol=1e-6)


def test_products_and_known_ranges_can_be_left_in_float_too(tmp_path):
    prepared, image = prepared_network("attention"), batches(1, 7)[0]
    mapping = QConfigMapping().set_global("WC8_AT8").set_object_type("matmul", None).set_object_type("softmax", None)
    whole, converted = convert_fx(prepared), convert_fx(prepared, mapping)
    assert [row for row in whole.module.operations.values() if row in ("matmul", "softmax")] == [
        "matmul",
        "softmax",
        "matmul",
    ]
    assert {"matmul", "softmax"}.isdisjoint(converted.module.operations.values())
    assert not any(isinstance(module, IntegerMatmul) for module in converted.modules())
    assert relative_error(converted(image), network("attention")(image)) < 0.1
    assert converted.export(image, tmp_path / "model.onnx").passed


def test_calibrated_biases_go_back_where_a_layer_stays_float():
    prepared, float_bias = prepared_network("residual"), network("residual").fc.bias.detach()
    convert_fx(prepared)  # which calibrates
    assert float((prepared.module.fc.bias.detach() - float_bias).abs().max()) > 1e-5
    converted = convert_fx(prepared, QConfigMapping().set_global("WC8_AT8").set_module_name("fc", None))
    torch.testing.assert_close(converted.module.fc.bias, float_bias, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("mapping", "what"),
    [
        (QConfigMapping(), "the preset 'DEFAULT'"),
        (QConfigMapping().set_global("WC8_AT8").set_module_name("fc", "WC4_AT8"), "the rule for 'fc'"),
    ],
)
def test_a_conversion_cannot_quantize_in_another_way(mapping, what):
    with pytest.raises(SpecError, match=f"it cannot quantize them in another way, but {what} is not what the network"):
        convert_fx(prepared_network("residual"), mapping)
