"""A layer, the batch norm and the activation behind it are one quantized operation: one rounding, at the end."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from tests.graph.parity import AS_WRITTEN, assert_exact, calibrated, images

LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), 1),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, bias=False), 2),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3), 3),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3, bias=False), 1),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), 2),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 6, 2), 3),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=2), 2),
    "grouped transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), 2),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"), 2),
    "depthwise multiplier": (lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False), 2),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), 2),
    "linear": (lambda: nn.Linear(4, 6), 0),
}
ACTIVATIONS = {
    "none": (nn.Identity(), None, None),
    "relu": (nn.ReLU(), 0.0, None),
    "relu6": (nn.ReLU6(inplace=True), 0.0, 6.0),
    "hardtanh": (nn.Hardtanh(-0.6, 0.9), -0.6, 0.9),
}
NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def block(layer, norm, activation):
    torch.manual_seed(0)
    make, dimensions = LAYERS[layer]
    module = make()
    channels = getattr(module, "out_channels", getattr(module, "out_features", 0))
    parts = [module]
    if norm:
        parts.append(NORMS[dimensions](channels, eps=0.01))
        nn.init.uniform_(parts[1].weight, -1, 2)
        nn.init.normal_(parts[1].bias)
        parts[1].running_mean.normal_()
        parts[1].running_var.uniform_(0.2, 2)
    return nn.Sequential(*parts, ACTIVATIONS[activation][0]).eval(), images(3, 4, *(6,) * dimensions)


def deployed(layer, x):
    """The output in float64 of the quantized weight and bias, before the activation."""
    weight, bias = layer.folded(layer.weight, layer.bias)
    weight = layer.weight_quantizer(weight).double()
    bias = None if bias is None else layer.quantized_bias(bias).double()
    return layer.operation(x.double(), weight, bias)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [False, True], ids=["", "norm"])
@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_a_chain_is_one_operation_with_one_rounding(layer, norm, activation):
    model, x = block(layer, norm, activation)
    floor, ceiling = ACTIVATIONS[activation][1:]
    wrapped = calibrated(model, x)
    (quantized,) = wrapped.module.quantized_layers()
    assert (quantized.site.floor, quantized.site.ceiling) == (floor, ceiling)
    assert (quantized.site.norm is not None) is norm
    source, target = wrapped.module.quantizers()  # the input and the output, and nothing between
    assert quantized.site.target is target
    (found,) = assert_exact(wrapped, x)
    expected = deployed(quantized, source(x)).clamp(-math.inf if floor is None else floor, ceiling)
    low, high = ((end - target.zero_point) * target.scale for end in (target.quant_min, target.quant_max))
    assert (found - expected.clamp(low, high)).abs().max() <= 0.5001 * target.scale + 1e-5
    assert (found - model(x)).abs().max() < 12 * target.scale + 1e-5  # weights and inputs are rounded too


@pytest.mark.parametrize(
    ("function", "bounds"),
    [
        (lambda m, y: F.relu(y), (0.0, None)),
        (lambda m, y: torch.relu_(y), (0.0, None)),
        (lambda m, y: y.relu(), (0.0, None)),
        (lambda m, y: F.relu6(y, inplace=True), (0.0, 6.0)),
        (lambda m, y: F.hardtanh(y, -0.3, 0.2), (-0.3, 0.2)),
        (lambda m, y: torch.clamp(y, min=-0.1), (-0.1, None)),
        (lambda m, y: y.clamp_(max=0.25), (None, 0.25)),
        (lambda m, y: y.clamp_min(0.05), (0.05, None)),
        (lambda m, y: torch.clamp_max(y, 1), (None, 1.0)),
    ],
)
def test_functional_activations_fuse_with_layers_sums_and_products(function, bounds):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x):
            return function(self, self.norm(self.conv(x))), function(self, x + 1), function(self, x @ x.mT)

    torch.manual_seed(0)
    wrapped = calibrated(Net().eval(), images())
    assert_exact(wrapped, images())
    sites = [module.site for module in wrapped.modules() if hasattr(module, "site")]
    (bounded,) = (node.kwargs for node in wrapped.module.fx_graph.nodes if {"floor", "ceiling"} & {*node.kwargs})
    assert [(site.floor, site.ceiling) for site in sites] == [bounds, bounds]  # convolution and product
    assert (bounded.get("floor"), bounded.get("ceiling")) == bounds  # the sum's quantizer
    names = [node.name for node in wrapped.module.fx_graph.nodes if node.op in ("call_function", "call_method")]
    assert names == ["add", "getattr_1"]  # no clip is left


class Twice(nn.Module):
    """The convolution's output has two readers, so neither the norm nor the activation can be folded into it."""

    def __init__(self, norm=None, activation=None):
        super().__init__()
        self.conv, self.norm, self.activation = nn.Conv2d(3, 8, 1), norm, activation

    def forward(self, x):
        y = self.conv(x)
        z = y if self.norm is None else self.norm(y)
        z = z if self.activation is None else self.activation(z)
        return z * 2 + y


@pytest.mark.parametrize(("norm", "activation", "count"), [
    (nn.BatchNorm2d(8), None, 5),  # input, conv, norm, mul, add
    (None, nn.ReLU(), 4),  # the ReLU shares the convolution's range: zero has a code in it
    (None, nn.ReLU6(), 5),  # six need not have one
    (None, nn.Hardtanh(-0.2, 0.2), 5),
    (nn.BatchNorm2d(8), nn.ReLU6(), 5),  # the norm and its activation are one
])  # fmt: skip
def test_what_has_two_readers_is_not_folded(norm, activation, count):
    wrapped = calibrated(Twice(norm, activation).eval(), images(), rewrites=AS_WRITTEN)
    (conv,) = wrapped.module.quantized_layers()
    assert conv.site.norm is None
    assert (conv.site.floor, conv.site.ceiling) == (None, None)
    assert len(wrapped.module.quantizers()) == count
    assert_exact(wrapped, images())


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8, track_running_stats=False), nn.GroupNorm(2, 8)])
def test_a_norm_without_running_statistics_is_computed_by_itself(norm):
    wrapped = calibrated(nn.Sequential(nn.Conv2d(3, 8, 1), norm).eval(), images())
    assert wrapped.module.quantized_layers()[0].site.norm is None
    assert [tensor.name for tensor in wrapped.module.quantizers()] == ["input_1", "0", "1"]
    assert_exact(wrapped, images())


def test_a_norm_of_other_dimensions_than_the_layer_is_not_folded():
    class Rows(nn.Module):
        """A linear layer over (batch, rows, features); the norm takes the rows for channels."""

        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(7)

        def forward(self, x):
            return self.norm(self.linear(x))

    model, x = Rows().eval(), images(2, 7, 4)
    wrapped = calibrated(model, x)
    assert wrapped.module.quantized_layers()[0].site.norm is None
    assert_exact(wrapped, x)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.LeakyReLU(0.1), nn.Sigmoid()])
def test_an_activation_that_bends_gets_a_quantizer_of_its_own(activation):
    wrapped = calibrated(nn.Sequential(nn.Conv2d(3, 8, 1), activation).eval(), images())
    assert [tensor.name for tensor in wrapped.module.quantizers()] == ["input_1", "0", "1"]


def test_a_second_clip_stands_by_itself():
    wrapped = calibrated(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Hardtanh(-1.0, 0.4)).eval(), images())
    (conv,) = wrapped.module.quantized_layers()
    assert (conv.site.floor, conv.site.ceiling) == (0.0, None)
    assert [tensor.name for tensor in wrapped.module.quantizers()] == ["input_1", "0", "2"]
    found = assert_exact(wrapped, images())[0]
    step = float(wrapped.module.quantization.tensors["2"].scale)
    assert abs(float(found.max()) - 0.4) <= step / 2


def test_training_adds_no_module_between_convolution_and_norm():
    module = edgeq.QATFxModule(block("conv2d", True, "relu")[0], total_epochs=2).module
    calls = [node.target for node in module.fx_graph.nodes if node.op == "call_module"]
    assert calls == ["quantization.tensors.input_1", "0"]
