"""Activations that bend values, normalisation, known ranges and products of activations.

Tested elsewhere: every spelling of each (tests/graph/test_coverage.py); how a known range is kept where it is joined
with others (tests/graph/test_annotate.py); the products themselves (tests/modules).
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from edgeq.modules.codes import Dequantize, Quantize
from edgeq.modules.matmul import QuantizedMatmul
from edgeq.spec import QConfig
from tests.graph.parity import AS_WRITTEN, assert_exact, calibrated, images, relative_error
from tests.scenarios.wired import Wired, conv, norm, trained


def between(operation, dimensions=2, preset="WC8_AT8", within=0.03, **parts):
    """The calibrated network of a convolution, an operation and another convolution, as it is written; after a check
    that it converts exactly and is near to the float one.
    """
    torch.manual_seed(0)
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    parts = {"a": layer(3, 4, 1), "b": layer(4, 2, 1), **parts}
    model, x = Wired(lambda m, x: m.b(operation(m, m.a(x))), **parts).eval(), images(2, 3, *(6,) * dimensions)
    wrapped = calibrated(model, x, preset=preset, rewrites=AS_WRITTEN, bias_calibration_factor=0)
    assert_exact(wrapped, x)
    assert relative_error(wrapped(x), model(x)) < within
    return wrapped


def names(wrapped):
    """The quantizers that saw floating tensors, in order."""
    return [quantizer.name for quantizer in wrapped.module.quantizers() if quantizer.observed]


ACTIVATIONS = {
    "hardswish": (nn.Hardswish(), F.hardswish),
    "elu": (nn.ELU(0.7), lambda y: F.elu(y, 0.7)),
    "leaky_relu": (nn.LeakyReLU(0.2), lambda y: F.leaky_relu(y, 0.2)),
    "gelu": (nn.GELU(), F.gelu),
    "silu": (nn.SiLU(inplace=True), F.silu),
    "mish": (nn.Mish(), F.mish),
    "softplus": (nn.Softplus(), F.softplus),
    "softshrink": (nn.Softshrink(0.1), lambda y: F.softshrink(y, 0.1)),
    "tanhshrink": (nn.Tanhshrink(), F.tanhshrink),
    "logsigmoid": (nn.LogSigmoid(), F.logsigmoid),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_has_a_quantizer_in_front_and_one_behind(name):
    module, function = ACTIVATIONS[name]
    of_module = between(lambda m, y: m.activation(y), activation=module)
    of_function = between(lambda m, y: function(y))
    assert names(of_module) == ["x", "a", "activation", "b"]
    assert len(names(of_function)) == 4
    assert [sum(isinstance(m, kind) for m in of_module.convert().modules()) for kind in (Quantize, Dequantize)] == [
        2,
        2,
    ]
    one, other = (w.module.quantizers()[2].scale for w in (of_module, of_function))
    assert torch.equal(one, other)


@pytest.mark.parametrize("parameters", [1, 4])
@pytest.mark.parametrize("preset", ["WC8_AT8", "WC8SYMP2_AT8SYMP2"])
def test_prelu_with_one_slope_or_one_for_each_channel(parameters, preset):
    module = nn.PReLU(parameters)
    module.weight.data.uniform_(-0.5, 1.5)
    wrapped = between(lambda m, y: m.activation(y), activation=module, preset=preset, within=0.06)
    assert names(wrapped) == ["x", "a", "activation", "b"]
    assert wrapped.module.activation.weight.shape == (parameters,)
    of_function = between(lambda m, y: F.prelu(y, m.slope), slope=torch.rand(parameters), preset=preset, within=0.06)
    assert names(of_function) == ["x", "a", "prelu", "b"]  # its slope is a parameter, no activation


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm(dimensions, affine):
    module = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dimensions - 1](4, affine=affine)
    if affine:
        module.weight.data.uniform_(0.5, 2)
        module.bias.data.normal_()
    wrapped = between(lambda m, y: m.normal(y), dimensions, normal=module)
    assert names(wrapped) == ["x", "a", "normal", "b"]


def scale_and_shift(channels):
    return {"weight": torch.rand(channels), "bias": torch.randn(channels)}


PLANE = nn.LayerNorm([6, 6], elementwise_affine=False)
NORMS = {
    "layer norm": (lambda m, y: m.normal(y), {"normal": nn.LayerNorm(6)}),
    "layer norm of two dimensions": (lambda m, y: m.normal(y), {"normal": PLANE}),
    "layer norm, function": (lambda m, y: F.layer_norm(y, (6,), m.weight, m.bias), scale_and_shift(6)),
    "group norm": (lambda m, y: m.normal(y), {"normal": nn.GroupNorm(2, 4)}),
    "group norm, function": (lambda m, y: F.group_norm(y, 4, m.weight, m.bias), scale_and_shift(4)),
    "instance norm, function": (lambda m, y: F.instance_norm(y, None, None, m.weight, m.bias), scale_and_shift(4)),
    "rms norm": (lambda m, y: m.normal(y), {"normal": nn.RMSNorm(6)}),
    "local response norm": (lambda m, y: m.normal(y), {"normal": nn.LocalResponseNorm(3)}),
    "normalize": (lambda m, y: F.normalize(y, dim=1), {}),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_has_one_quantizer_and_its_weight_and_bias_have_none(name):
    operation, parts = NORMS[name]
    wrapped = between(operation, **parts)
    assert len(names(wrapped)) == 4
    assert [type(module).__name__ for module in wrapped.module.quantized_layers()] == ["QuantizedConv2d"] * 2


def test_a_batch_norm_that_no_layer_takes_in_and_the_relu_behind_it_are_one():
    wrapped = between(lambda m, y: m.relu(m.bn(torch.tanh(y))), bn=norm(4), relu=nn.ReLU())
    assert names(wrapped) == ["x", "a", "tanh", "bn", "b"]
    assert int(wrapped.module.quantization.tensors["bn"].zero_point) == 0  # what is below zero has no code
    assert "relu" not in [node.target for node in wrapped.module.fx_graph.nodes]


# ---- ranges that are known beforehand

KNOWN = {
    "sigmoid": ([nn.Sigmoid(), torch.sigmoid, lambda y: y.sigmoid(), lambda y: y.sigmoid_()], 2**-8, 0, 2**-8),
    "hardsigmoid": ([nn.Hardsigmoid(), F.hardsigmoid], 2**-8, 0, 2**-8),
    "softmax": ([nn.Softmax(1), lambda y: F.softmax(y, 1), lambda y: y.softmax(1), nn.Softmax2d()], 2**-8, 0, 2**-8),
    "softmin": ([nn.Softmin(1), lambda y: F.softmin(y, 1)], 2**-8, 0, 2**-8),
    "tanh": ([nn.Tanh(), torch.tanh, lambda y: y.tanh(), F.tanh], 2**-7, 128, 2**-7),
    "softsign": ([nn.Softsign(), F.softsign], 2**-7, 128, 2**-7),
}  # spellings; scale and zero point of an affine preset; scale of a symmetric one


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("is_qat", [False, True])
def test_a_known_range_is_fixed_in_every_spelling_and_in_training(name, is_qat):
    spellings, scale, zero_point, symmetric_scale = KNOWN[name]
    for preset, expected in (("WC8_AT8", (scale, zero_point)), ("WC8SYMP2_AT8SYMP2", (symmetric_scale, 0))):
        for spelling in spellings:
            parts = {"operation": spelling} if isinstance(spelling, nn.Module) else {}
            model = Wired(lambda m, x, f=spelling: m.b(f(m.a(x))), a=conv(3, 4), b=conv(4, 2), **parts)
            x = images() * 0.1
            wrapped = trained(model, x, preset=preset) if is_qat else calibrated(model.eval(), x, preset=preset)
            assert len(names(wrapped)) == 4
            quantizer = wrapped.module.quantizers()[2]
            assert quantizer.observer is None
            assert (float(quantizer.scale), int(quantizer.zero_point)) == expected
            assert wrapped.module.quantized_layers()[1].site.source is quantizer
            assert_exact(wrapped, x)


def test_a_presets_own_fixed_range_is_stronger_than_the_known_one():
    wide = edgeq.load_preset(
        {"inherits": "WC8_AT8", "rules": [{"type": "sigmoid", "activation": {"fixed_range": 2.0}}]}
    )
    assert isinstance(wide, QConfig)
    wrapped = between(lambda m, y: torch.sigmoid(y), preset=wide)
    assert float(wrapped.module.quantization.tensors["sigmoid"].scale) == pytest.approx(2 / 255)


def test_a_known_range_left_in_float_by_a_rule():
    rules = edgeq.load_preset({"inherits": "WC8_AT8", "rules": [{"type": "softmax", "quantize": False}]})
    wrapped = between(lambda m, y: F.softmax(y, 1), preset=rules)
    assert wrapped.module.reasons["softmax"] == "stays float by the rule for 'softmax'"
    assert wrapped.module.quantizers()[2].fixed == (0.0, 1.0)  # for the layer that reads it


# ---- products of activations


@pytest.mark.parametrize("product", [torch.matmul, torch.bmm, lambda a, b: a @ b, lambda a, b: a.matmul(b)])
def test_a_product_of_activations_is_computed_in_integers(product):
    wrapped = between(lambda m, y: product(y.flatten(2), y.flatten(2).transpose(1, 2)).unsqueeze(-1))
    assert sum(isinstance(module, QuantizedMatmul) for module in wrapped.modules()) == 1
    assert len(names(wrapped)) == 4  # both factors are the first layer's output


def test_a_product_with_a_relu_behind_it_is_one_operation():
    wrapped = between(lambda m, y: F.relu(y.flatten(2) @ y.flatten(2).mT).unsqueeze(-1))
    (site,) = [module.site for module in wrapped.modules() if isinstance(module, QuantizedMatmul)]
    assert (site.floor, site.ceiling) == (0.0, None)
    assert int(site.target.zero_point) == 0


def test_scores_softmax_and_values():
    def attend(m, y):
        q, k, v = y.flatten(2).chunk(3, -1)
        return ((q @ k.mT * 12**-0.5).softmax(-1) @ v).unsqueeze(-1)

    wrapped = between(attend)
    found = names(wrapped)
    assert len(found) == 7  # input, first layer, scores, scaled, weights, looked up, second layer
    fixed = [quantizer.name for quantizer in wrapped.module.quantizers() if quantizer.fixed is not None]
    assert fixed == ["softmax"]
    assert not any(reason.startswith("stays float") for reason in wrapped.module.reasons.values())
