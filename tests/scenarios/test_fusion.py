"""Fusion: what becomes one operation with one rounding.

Tested elsewhere, word for word: convolution, transposed convolution (1d to 3d) and linear layer with batch norm and
activation, calibrated (tests/graph/test_fuse.py) and trained (tests/graph/test_batch_norm.py); functional
activations behind a layer, a sum and a product, values with two readers, norms without statistics, an activation
that bends (test_fuse.py); a gamma of zero (test_batch_norm.py).
"""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.graph.parity import calibrated, images
from tests.scenarios.wired import Wired, assert_near, bounds, conv, folded, norm, quantizers, trained

WEIGHT = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 5
FUNCTIONAL = {
    "conv2d": (lambda m, x: m.norm(F.conv2d(x, m.weight, padding=1)), WEIGHT, images()),
    "conv2d with bias": (lambda m, x: m.norm(F.conv2d(x, m.weight, m.bias)), WEIGHT, images()),
    "conv1d": (lambda m, x: m.norm(torch.conv1d(x, m.weight)), WEIGHT[..., 0], images(4, 3, 9)),
    "conv_transpose2d": (
        lambda m, x: m.norm(F.conv_transpose2d(x, m.weight, m.bias, stride=2)),
        WEIGHT.transpose(0, 1),
        images(),
    ),
    "linear": (lambda m, x: m.norm(F.linear(x, m.weight)), WEIGHT[:, :, 0, 0], images(16, 3)),
}


@pytest.mark.parametrize("activation", [None, F.relu, F.relu6])
@pytest.mark.parametrize("name", FUNCTIONAL)
def test_a_batch_norm_behind_a_functional_layer_is_folded(name, activation):
    function, weight, x = FUNCTIONAL[name]
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[x.dim()]
    wired = function if activation is None else lambda m, x: activation(function(m, x))
    model = Wired(wired, weight=weight.clone(), bias=torch.randn(6) / 3, norm=norm(6, kind)).eval()
    node, expected = name.split()[0], {None: "norm", F.relu: "norm, clip 0..", F.relu6: "norm, clip 0..6"}[activation]
    wrapped = calibrated(model, x)
    assert folded(wrapped) == {node: expected}
    assert quantizers(wrapped) == ["x", node]
    assert_near(wrapped, model, x)
    again = trained(model, x)
    assert folded(again) == {node: expected}
    assert model.weight.grad.abs().max() > 0
    assert model.norm.weight.grad.abs().max() > 0
    assert_near(again, model, x, within=0.2)  # ranges are those of batch statistics, evaluation has running ones


@pytest.mark.parametrize("layer", ["conv", "linear"])
def test_a_synchronized_batch_norm_is_folded(layer):
    first = conv(3, 6) if layer == "conv" else nn.Linear(3, 6)
    model = nn.Sequential(first, norm(6, nn.SyncBatchNorm), nn.ReLU()).eval()
    x = images() if layer == "conv" else images(16, 3)
    for prepare, within in ((calibrated, 0.02), (trained, 0.2)):
        wrapped = prepare(model, x)
        assert folded(wrapped) == {"0": "norm, clip 0.."}
        assert quantizers(wrapped) == ["input_1", "0"]
        assert_near(wrapped, model, x, within=within)


def residual(left, two, relu, add, normed):
    """conv(+bn) + x or + another convolution, on either side, with or without ReLU."""

    def function(m, x):
        y = m.norm(m.conv(x)) if normed else m.conv(x)
        other = m.other(x) if two else x
        z = add(y, other) if left else add(other, y)
        return m.relu(z) if relu else z

    return Wired(function, conv=conv(), norm=norm(), other=conv(3, 3, 3, padding=1), relu=nn.ReLU()).eval()


@pytest.mark.parametrize("add", [operator.add, torch.add, operator.iadd], ids=["+", "torch.add", "+="])
@pytest.mark.parametrize("two", [False, True], ids=["x", "conv"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize("normed", [False, True], ids=["", "bn"])
def test_a_residual_sum_takes_its_relu_and_each_layer_its_norm(normed, relu, left, two, add):
    if add is operator.iadd and not left and not two:
        pytest.skip("it would write into the network's input")
    model, x = residual(left, two, relu, add, normed), images()
    wrapped = calibrated(model, x)
    layers = ["conv", "other"] if two else ["conv"]
    assert folded(wrapped) == {name: "norm" if normed and name == "conv" else "" for name in layers}
    assert sorted(quantizers(wrapped)) == sorted(["x", *layers, "add"])  # the sum's own range, behind the ReLU
    assert bounds(wrapped) == ({"add": (0.0, None)} if relu else {})
    assert wrapped.module.get_submodule("relu") is not None
    assert not any(node.target == "relu" for node in wrapped.module.fx_graph.nodes)
    assert_near(wrapped, model, x)


@pytest.mark.parametrize(
    ("clip", "clip_of"), [(nn.ReLU(), (0.0, None)), (nn.ReLU6(), (0.0, 6.0)), (nn.Hardtanh(-0.3, 0.5), (-0.3, 0.5))]
)
@pytest.mark.parametrize("combine", [
    lambda m, x: m.conv(x) * x, lambda m, x: torch.mul(x, m.conv(x)), lambda m, x: m.conv(x).mul_(x),
    lambda m, x: m.conv(x).add(x, alpha=2), lambda m, x: x - m.conv(x), lambda m, x: m.conv(x) / (x * x + 1),
])  # fmt: skip
def test_sums_products_and_the_like_take_the_activation_behind_them(combine, clip, clip_of):
    model, x = Wired(lambda m, x: m.clip(combine(m, x)), conv=conv(), clip=clip).eval(), images()
    wrapped = calibrated(model, x)
    assert bounds(wrapped) == {quantizers(wrapped)[-1]: clip_of}  # the last one, that of the result
    assert not any(node.target == "clip" for node in wrapped.module.fx_graph.nodes)
    assert_near(wrapped, model, x, within=0.04)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_a_batch_norm_that_follows_no_layer_is_one_operation_with_its_relu(dimensions, relu):
    kind = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1]
    model = Wired(
        lambda m, x: m.relu(m.norm(x.tanh())) if relu else m.norm(x.tanh()), norm=norm(3, kind), relu=nn.ReLU()
    )
    model.linear, x = nn.Linear(4, 4), images(4, 3, *(4,) * dimensions)
    model.function = (lambda function: lambda m, x: m.linear(function(m, x)))(model.function)
    wrapped = calibrated(model.eval(), x)
    assert quantizers(wrapped) == ["x", "tanh", "norm", "linear"]
    assert bounds(wrapped) == ({"norm": (0.0, None)} if relu else {})
    assert float(wrapped.module.quantization.tensors.norm.zero_point == 0) == relu  # no code below zero is kept
    assert_near(wrapped, model, x)
    assert_near(trained(model, x), model, x, within=0.3)
    assert int(model.norm.num_batches_tracked) == 2  # it follows the data of the training


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("activation", "fixed"), [(nn.LeakyReLU(0.1), None), (nn.Tanh(), (-1.0, 1.0))])
def test_an_activation_that_bends_reads_the_codes_of_the_linear_layer(activation, fixed, normed):
    parts = [nn.Linear(8, 6), *([norm(6, nn.BatchNorm1d)] if normed else []), activation]
    model, x = nn.Sequential(*parts).eval(), images(32, 8)
    for prepare, within in ((calibrated, 0.02), (trained, 0.2)):
        wrapped = prepare(model, x)
        last = str(len(parts) - 1)
        assert folded(wrapped) == {"0": "norm" if normed else ""}
        assert quantizers(wrapped) == ["input_1", "0", last]  # runtimes have no fused kernel with a finer input
        assert wrapped.module.quantization.tensors[last].fixed == fixed
        assert_near(wrapped, model, x, within=within)


def test_of_two_batch_norms_the_first_is_folded_into_the_convolution():
    model, x = nn.Sequential(conv(3, 6), norm(6), norm(6), nn.ReLU()).eval(), images()
    wrapped = calibrated(model, x)
    assert folded(wrapped)["0"] == "norm"
    assert wrapped.module.get_submodule("0").site.norm is wrapped.module.get_submodule("1")
    assert quantizers(wrapped) == ["input_1", "0", "2"]
    assert bounds(wrapped) == {"2": (0.0, None)}
    assert_near(wrapped, model, x)


class Block(nn.Sequential):
    """A subclass of Sequential, whose children are to be fused all the same."""

    def __init__(self, inputs, outputs):
        super().__init__(conv(inputs, outputs), norm(outputs), nn.ReLU(inplace=True))


def test_fusion_looks_through_sequences_and_subclasses_of_them():
    model, x = (
        nn.Sequential(Block(3, 4), nn.Sequential(Block(4, 5), nn.Sequential(conv(5, 6), norm(6)))).eval(),
        images(),
    )
    wrapped = calibrated(model, x)
    assert folded(wrapped) == {"0.0": "norm, clip 0..", "1.0.0": "norm, clip 0..", "1.1.0": "norm"}
    assert quantizers(wrapped) == ["input_1", "0_0", "1_0_0", "1_1_0"]
    assert_near(wrapped, model, x)


@pytest.mark.parametrize("training", [False, True])
def test_fusing_does_not_depend_on_the_mode_that_the_model_comes_in(training):
    model, x = Block(3, 4).train(training), images()
    model[1].momentum = 0.0
    wrapped = calibrated(model, x)
    assert folded(wrapped) == {"0": "norm, clip 0.."}
    assert model.training is training
    assert_near(wrapped, Block(3, 4), x)
