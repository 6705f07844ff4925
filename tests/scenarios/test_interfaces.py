"""Interfaces: where quantized and float meet, at either end of a network and inside of it.

Tested elsewhere, word for word: regions that stubs mark (tests/graph/test_region.py); standalone modules in depth
(tests/graph/test_standalone.py); several quantized parts with Python around them (tests/graph/test_parts.py,
tests/graph/test_prepare_parts.py); names, classes and lists of parts (tests/graph/test_chosen.py); preserved attributes
(tests/test_fx.py).
"""

import copy

import onnx
import pytest
import torch
from torch import nn
from torch.ao.nn.quantized import FloatFunctional

from edgeq import QConfigMapping
from tests.graph.parity import assert_exact, calibrated, images, relative_error
from tests.scenarios.wired import Wired, assert_near, conv, norm, quantizers, trained


def nodes(wrapped, path, *inputs):
    """How many nodes of each operator the exported file has."""
    assert wrapped.export(inputs, path / "model.onnx").passed
    return wrapped.export(inputs, path / "model.onnx").nodes


# ---- the ends of a network


@pytest.mark.parametrize("float_input", [True, False])
@pytest.mark.parametrize("float_output", [True, False])
def test_each_end_of_a_network_is_quantized_or_float_with_just_the_quantizers_that_it_takes(
    float_input, float_output, tmp_path
):
    mapping = QConfigMapping()
    for name, is_float in (("first", float_input), ("last", float_output)):
        if is_float:
            mapping.set_module_name(name, None)
    model = nn.Sequential()
    for name, channels in (("first", (3, 4)), ("middle", (4, 5)), ("last", (5, 6))):
        model.add_module(name, conv(*channels))
    wrapped = calibrated(model, images(), preset=mapping.qconfig())
    expected = ["first"] if float_input else ["x", "first"]
    assert [name.replace("input_1", "x") for name in quantizers(wrapped)] == [
        *expected, "middle", *([] if float_output else ["last"]),
    ]  # fmt: skip
    assert_near(wrapped, model, images())
    counts = nodes(wrapped, tmp_path, images())
    assert counts["QuantizeLinear"] == len(quantizers(wrapped))
    weights = 3 - float_input - float_output
    assert counts["DequantizeLinear"] == len(quantizers(wrapped)) + 2 * weights  # and of each weight and bias


OUTPUTS = {
    "tensor": lambda m, x: m.one(x),
    "tuple": lambda m, x: (m.one(x), m.two(x)),
    "dict": lambda m, x: {"one": m.one(x), "two": {"three": m.two(x)}},
    "list of what is read on": lambda m, x: [m.two(m.one(x)), m.one(x)],
    "dict of what is moved": lambda m, x: {"one": m.one(x).flatten(1), "two": m.two(x).transpose(2, 3)},
}


@pytest.mark.parametrize("form", OUTPUTS)
@pytest.mark.parametrize("prepare", [calibrated, trained])
def test_what_comes_out_is_always_observed_in_whatever_it_lies(form, prepare):
    model = Wired(OUTPUTS[form], one=conv(3, 3), two=conv(3, 4) if "read on" not in form else conv(3, 3, 3))
    wrapped = prepare(model, images())
    network = wrapped.module
    given = next(reversed(network.fx_graph.nodes)).all_input_nodes
    assert all(network.quantizer_of(node.name) is not None for node in given)
    for leaf, node in zip(assert_exact(wrapped, images()), given, strict=True):
        quantizer = network.quantizer_of(node.name)
        codes = leaf.double() / quantizer.scale.double()
        assert torch.allclose(codes, codes.round(), atol=1e-3)  # on the grid of its quantizer
        assert leaf.unique().numel() <= 256


# ---- standalone modules


class Block(nn.Module):
    """Two layers with an addition."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(3, 3, 3, padding=1), norm(3)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + x)


def model():
    return nn.Sequential(conv(3, 3, 3), Block(), conv(3, 4)).eval()


@pytest.mark.parametrize("prepare", [calibrated, trained])
@pytest.mark.parametrize("key", ["1", Block])
def test_a_standalone_module_has_a_float_interface_and_is_quantized_inside(prepare, key, tmp_path):
    wrapped = prepare(model(), images(), standalone=[key])
    (part,) = wrapped.module.standalone()
    assert [quantizer.name for quantizer in part.quantizers()] == ["x", "conv", "add"]
    assert len(quantizers(wrapped)) == 4  # the input, the first layer, what the module gives, the last layer
    assert_exact(wrapped, images())
    counts = nodes(wrapped, tmp_path, images())
    assert counts["QuantizeLinear"] == 4 + 3
    assert counts["Conv"] == 3


def test_a_module_that_is_not_standalone_shares_its_quantizers_with_its_neighbours(tmp_path):
    wrapped = calibrated(model(), images())
    assert len(quantizers(wrapped)) == 5
    assert nodes(wrapped, tmp_path, images())["QuantizeLinear"] == 5


def test_a_standalone_module_may_have_settings_of_its_own():
    wrapped = calibrated(model(), images(), preset="WC8_AT8", standalone={"1": "WC4_AT8"})
    (part,) = wrapped.module.standalone()
    assert [
        layer.weight_quantizer.spec.bits for layer in (*wrapped.module.quantized_layers(), *part.quantized_layers())
    ] == [8, 8, 4]
    rough = relative_error(wrapped(images()), model()(images()))
    fine = relative_error(calibrated(model(), images(), standalone=["1"])(images()), model()(images()))
    assert fine < rough < 0.3
    assert_exact(wrapped, images())


def test_standalone_modules_are_copied_with_the_network():
    wrapped = calibrated(model(), images(), standalone=["1"])
    twin = copy.deepcopy(wrapped)
    assert torch.equal(twin(images()), wrapped(images()))
    assert twin.module.standalone()[0] is not wrapped.module.standalone()[0]
    assert_exact(twin, images())


# ---- several quantized parts in one model


class Parts(nn.Module):
    """Two networks, with Python between them that nothing can capture."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Sequential(conv(3, 3), Block()), nn.Sequential(Block(), conv(3, 4))

    def forward(self, x):
        y = self.one(x)
        y = y / max(float(y.detach().abs().max()), 1.0)
        return self.two(y)


@pytest.mark.parametrize("prepare", [calibrated, trained])
@pytest.mark.parametrize("second", [None, "WC4_AT8", "WC8P2_AT8P2"])
def test_several_parts_of_a_model_are_quantized_each_in_its_own_way(prepare, second, tmp_path):
    wrapped = prepare(Parts().eval(), images(), submodules={"one": None, "two": second})
    one, two = wrapped.module.parts.values()
    assert (one.qconfig.name, two.qconfig.name) == ("WC8_AT8", second or "WC8_AT8")
    assert_exact(wrapped, images())
    results = wrapped.export_parts(images(), tmp_path)
    assert {path: result.passed for path, result in results.items()} == {"one": True, "two": True}
    assert [result.nodes["QuantizeLinear"] for result in results.values()] == [4, 4]


# ---- modules that cannot be traced, and custom ones


class Untraceable(nn.Module):
    """Decides by value; has weights and a batch norm of its own."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm = conv(3, 3), norm(3)

    def forward(self, x):
        return self.norm(self.inner(x)) if x.sum() < 1e9 else x


class Further(Untraceable):
    """A subclass."""


def around(kind=Untraceable):
    return Wired(
        lambda m, x: m.last(m.odd(m.first(x)) + m.first(x)), first=conv(3, 3), odd=kind(), last=conv(3, 3)
    ).eval()


@pytest.mark.parametrize("untraced", [["odd"], [Untraceable]])
@pytest.mark.parametrize("kind", [Untraceable, Further])
def test_modules_that_cannot_be_traced_are_left_whole_by_name_or_class(untraced, kind, tmp_path):
    network = around(kind)
    wrapped = calibrated(network, images(), untraced=untraced)
    assert type(wrapped.module.get_submodule("odd")) is kind
    assert not [layer for layer in wrapped.module.quantized_layers() if layer.site.name.startswith("odd")]
    assert "odd" in quantizers(wrapped)  # what it gives is added to integers
    assert_near(wrapped, network, images())


def test_a_module_that_is_left_whole_computes_in_float_as_it_did():
    network = around()
    wrapped = calibrated(network, images(), untraced=["odd"])
    seen = []
    wrapped.module.get_submodule("odd").register_forward_hook(
        lambda module, args, output: seen.append((args[0], output))
    )
    wrapped(images())
    ((given, made),) = seen
    assert given.is_floating_point()
    assert torch.equal(made, network.odd(given))


def test_training_leaves_the_layers_of_modules_that_are_left_whole_in_float():
    network = around()
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    wrapped = trained(network, images(), untraced=[Untraceable], steps=2)
    assert {layer.site.name for layer in wrapped.module.quantized_layers()} == {"first", "last"}
    inner = wrapped.module.get_submodule("odd.inner")
    assert type(inner) is nn.Conv2d
    assert not torch.equal(inner.weight, before["odd.inner.weight"])  # it trains
    assert not [key for key in wrapped.state_dict() if "odd.inner" in key and "quantizer" in key]
    assert_exact(wrapped, images())


def test_a_custom_module_whose_input_others_read_too():
    class Custom(nn.Module):
        def forward(self, x):
            return x * 2 if x.numel() and float(x.flatten()[0]) < 1e9 else x

    network = Wired(
        lambda m, x: (lambda y: m.last(m.custom(y)) + m.other(y))(m.first(x)),
        first=conv(3, 3), custom=Custom(), last=conv(3, 3), other=conv(3, 3, bias=False),
    ).eval()  # fmt: skip
    wrapped = calibrated(network, images(), untraced=[Custom])
    assert quantizers(wrapped).count("first") == 1
    assert_near(wrapped, network, images())
    assert_near(trained(network, images(), untraced=["custom"]), network, images(), within=0.03)


# ---- float functional


class Functional(nn.Module):
    """Arithmetic by modules, as models have it that were written for PyTorch's own quantization."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = conv(3, 3), conv(3, 3, bias=False), conv(6, 2)
        self.sum, self.product, self.joint, self.bias = (FloatFunctional() for _ in range(4))

    def forward(self, x):
        one, two = self.one(x), self.two(x)
        added = self.sum.add_relu(one, two)
        return self.last(self.joint.cat([self.product.mul(added, two), self.bias.add_scalar(one, 0.5)], 1))


class Operators(Functional):
    """The same in plain operators."""

    def forward(self, x):
        one, two = self.one(x), self.two(x)
        added = torch.relu(one + two)
        return self.last(torch.cat([added * two, one + 0.5], 1))


@pytest.mark.parametrize("prepare", [calibrated, trained])
def test_functions_that_are_modules_are_the_operators_that_they_stand_for(prepare, tmp_path):
    found, expected = (prepare(network().eval(), images()) for network in (Functional, Operators))
    assert len(quantizers(found)) == len(quantizers(expected))
    assert torch.equal(found(images()), expected(images()))
    assert_exact(found, images())
    assert nodes(found, tmp_path, images()) == nodes(expected, tmp_path, images())
    assert not [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "Identity"]


def test_the_file_of_a_standalone_module_keeps_its_name_in_its_tensors(tmp_path):
    wrapped = calibrated(model(), images(), standalone=["1"])
    result = wrapped.export(images(), tmp_path / "model.onnx")
    names = [tensor.name for tensor in result.parity[0].tensors]
    assert [name for name in names if name.startswith("1.")] == ["1.x", "1.conv", "1.add"]
    assert names[-1] == "2"
