"""Core layers: convolutions, transposed convolutions and linear layers, as modules and as functions.

Tested elsewhere, word for word: what every kind of layer computes, deployed, against float64
(tests/graph/test_fuse.py, tests/modules/test_exact.py); packed weights in the state and in copies
(tests/modules/test_integer.py, tests/test_wrapper_copies.py); prepared equals converted equals the file
(tests/graph/test_convert.py, tests/onnx/test_parity.py).
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeq.modules.codes import Dequantize
from tests.graph.parity import assert_exact, calibrated, images, relative_error
from tests.scenarios.wired import Wired, assert_near, conv, folded, norm, quantizers, trained

SIZES = {1: (3, 9), 2: (3, 7, 7), 3: (3, 5, 5, 5)}
CONVS = {1: (nn.Conv1d, F.conv1d), 2: (nn.Conv2d, F.conv2d), 3: (nn.Conv3d, F.conv3d)}
TRANSPOSED = {
    1: (nn.ConvTranspose1d, F.conv_transpose1d),
    2: (nn.ConvTranspose2d, F.conv_transpose2d),
    3: (nn.ConvTranspose3d, F.conv_transpose3d),
}
RELUS = {
    "none": (None, ""),
    "module": (nn.ReLU(), "clip 0.."),
    "module in place": (nn.ReLU(inplace=True), "clip 0.."),
    "function": (F.relu, "clip 0.."),
    "function in place": (F.relu_, "clip 0.."),
    "method": (lambda x: x.relu(), "clip 0.."),
}


def pair(kind, dimensions, bias):
    """A module and a functional network that compute the same."""
    torch.manual_seed(dimensions)
    if kind == "linear":
        module, function = nn.Linear(SIZES[dimensions][-1], 6, bias=bias), F.linear
    else:
        cls, function = (CONVS if kind == "conv" else TRANSPOSED)[dimensions]
        module = cls(3, 6, 3, bias=bias)
    parts = {"weight": module.weight.detach().clone()} | ({"bias": module.bias.detach().clone()} if bias else {})
    call = (lambda m, x: function(x, m.weight, m.bias)) if bias else (lambda m, x: function(x, m.weight))
    return Wired(lambda m, x: m.layer(x), layer=module), Wired(call, **parts)


@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "dimensions"), [("conv", 1), ("conv", 2), ("conv", 3), ("transposed", 1), ("transposed", 2), ("linear", 2)]
)
def test_module_and_function_give_the_same_network(kind, dimensions, bias, relu):
    activation, expected = RELUS[relu]
    x, found = images(2, *SIZES[dimensions]), []
    for model in pair(kind, dimensions, bias):
        inner = model.function
        if activation is not None:
            model.function = lambda m, x, inner=inner: activation(inner(m, x))
        model.activation = activation if isinstance(activation, nn.Module) else None
        wrapped = calibrated(model.eval(), x)
        (layer,) = wrapped.module.quantized_layers()
        assert list(folded(wrapped).values()) == [expected]
        assert len(quantizers(wrapped)) == 2
        assert (layer.bias is not None) is bias
        found.append((*assert_exact(wrapped, x), layer.weight_quantizer.scale, layer.site.target.scale))
        assert relative_error(found[-1][0], model(x)) < 0.02
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_scales_of_weights_survive_state_and_copy(kind):
    x = images(2, *SIZES[2])
    one, other = (calibrated(pair(kind, 2, True)[0].eval(), x * factor) for factor in (1, 3))
    other.module.layer.weight.data.mul_(2)
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    for twin in (other, copy.deepcopy(one)):
        mine, theirs = (wrapped.module.quantized_layers()[0].weight_quantizer for wrapped in (one, twin))
        assert torch.equal(mine.scale, theirs.scale)
        assert torch.equal(twin(x), one(x))
        assert torch.equal(twin.convert()(x), one.convert()(x))


def test_the_scale_of_a_weight_is_that_of_the_weight_alone():
    """Weights need no data: their scales are those of the folded weight, whatever was calibrated with."""
    weights = []
    for x in (images(), 100 * images(seed=1)):
        model = nn.Sequential(conv(3, 6), norm(6)).eval()
        (layer,) = calibrated(model, x).module.quantized_layers()
        weight = layer.folded(layer.weight, None)[0]
        torch.testing.assert_close(
            layer.weight_quantizer.scale, weight.abs().amax((1, 2, 3)) / 127.5, rtol=0.01, atol=0
        )
        weights.append(layer.weight_quantizer.scale)
    torch.testing.assert_close(*weights, rtol=1e-6, atol=0)


@pytest.mark.parametrize("model", [
    nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4, 3), nn.ReLU6()),
    nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 4)),
    nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.ReLU(), conv(4, 2)),
])  # fmt: skip
def test_layers_hand_integers_to_each_other(model):
    x = images()
    wrapped = calibrated(model.eval(), x)
    converted = wrapped.convert()
    names = list(converted.module.operations.values())
    assert names[0] == "quantize"  # once, at the entry
    assert names.count("quantize") == 1
    assert len(names) == 1 + len(wrapped.module.quantized_layers())
    assert sum(isinstance(module, Dequantize) for module in converted.modules()) == 1  # once, at the exit
    assert_near(wrapped, model, x)


def test_a_layer_behind_a_layer_of_its_own_kind_needs_no_activation_between():
    model, x = Wired(lambda m, x: m.two(m.one(x)) + m.two(x), one=conv(), two=conv()).eval(), images()
    wrapped = calibrated(model, x)
    assert quantizers(wrapped) == ["x", "one", "two", "two_1", "add"]
    assert_near(wrapped, model, x, within=0.03)
    assert_exact(trained(model, x), x)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_linear_layer_takes_inputs_of_any_rank(depth):
    x = images(*range(2, depth + 1), 6)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    wrapped = calibrated(model, x)
    assert folded(wrapped) == {"0": "clip 0..", "2": ""}
    assert_near(wrapped, model, x)
    with torch.no_grad():
        one = x[(0,) * (depth - 1)]
        whole = wrapped(x)[(0,) * (depth - 1)]
        assert torch.equal(wrapped.convert()(one), whole)
