"""Numbers that a layer's output is multiplied with, or that are added to it, go into the layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from tests.graph.parity import assert_exact, calibrated, images
from tests.graph.passes.networks import (
    assert_files_agree,
    assert_same_function,
    assert_trains_as_float,
    changes,
    kinds,
    lively,
    only,
)

FOLD, MERGE = "scalar_folding", "scalar_merging"


class Behind(nn.Module):
    """A layer, perhaps a norm, an expression, perhaps a ReLU, and a linear layer over channels last."""

    def __init__(self, expression, layer=None, norm=None, relu=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm, self.relu = layer or nn.Conv2d(3, 6, 3, padding=1), norm, relu
        if layer is not None:
            layer.reset_parameters()
        self.expression = expression

    def forward(self, x):
        y = self.layer(x)
        y = self.expression(y if self.norm is None else self.norm(y))
        return torch.relu(y) if self.relu else y


EXPRESSIONS = {
    "times": (lambda y: y * 0.3, 0.3, 0.0),
    "number first": (lambda y: 0.3 * y, 0.3, 0.0),
    "over": (lambda y: y / 4, 0.25, 0.0),
    "plus": (lambda y: y + 1.5, 1.0, 1.5),
    "minus": (lambda y: y - 1.5, 1.0, -1.5),
    "number minus": (lambda y: 1.5 - y, -1.0, 1.5),
    "negative": (lambda y: -y, -1.0, 0.0),
    "functions": (lambda y: torch.add(torch.mul(y, 2), 1), 2.0, 1.0),
    "methods": (lambda y: y.mul(2).sub(1).div(4), 0.5, -0.25),
    "in place": (lambda y: y.mul_(2).add_(1), 2.0, 1.0),
    "chain": (lambda y: (1 - y * 2) / 4 + 3, -0.5, 3.25),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_becomes_one_factor_and_one_offset_of_the_layer(name):
    expression, factor, offset = EXPRESSIONS[name]
    wrapped = assert_same_function(lambda: Behind(expression).eval(), FOLD, images())
    (layer,) = wrapped.module.quantized_layers()
    assert (layer.site.factor, layer.site.offset) == (pytest.approx(factor), pytest.approx(offset))
    assert len(wrapped.module.quantizers()) == 2
    assert kinds(wrapped) == ["QuantizedConv2d"]
    assert wrapped.module.layer.weight is layer.weight


LAYERS = {
    "no bias": (lambda: (nn.Conv2d(3, 6, 3, bias=False), None), (4, 3, 8, 8)),
    "linear": (lambda: (nn.Linear(3, 6), None), (4, 5, 3)),
    "transposed": (lambda: (nn.ConvTranspose2d(3, 6, 3, stride=2), None), (4, 3, 8, 8)),
    "norm": (lambda: (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), (4, 3, 8, 8)),
    "norm without affine": (lambda: (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)), (4, 3, 8, 8)),
    "transposed in groups, norm": (
        lambda: (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)),
        (4, 4, 8, 8),
    ),
}


def build(case, relu=True):
    return lambda: lively(Behind(lambda y: y * -0.7 + 0.2, *LAYERS[case][0](), relu))


@pytest.mark.parametrize("case", LAYERS)
def test_every_layer_takes_numbers_in_together_with_its_norm_and_activation(case):
    shape = LAYERS[case][1]
    wrapped = assert_same_function(build(case), FOLD, images(*shape))
    (layer,) = wrapped.module.quantized_layers()
    assert (layer.site.factor, layer.site.offset, layer.site.floor) == (-0.7, 0.2, 0.0)
    assert (layer.site.norm is not None) is ("norm" in case)
    assert len(wrapped.module.quantizers()) == 2


@pytest.mark.parametrize("case", LAYERS)
def test_it_trains_as_in_float(case):
    assert_trains_as_float(build(case, relu=False), FOLD, *LAYERS[case][1])


class Own(nn.Module):
    """A convolution as a function."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3, 3, 3) / 5), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias) * 0.5


def test_a_functional_layer_takes_numbers_in():
    wrapped = assert_same_function(lambda: Own().eval(), FOLD, images())
    assert wrapped.module.quantized_layers()[0].site.factor == 0.5


def test_bias_calibration_moves_what_lies_behind_the_factor():
    x = images(16, 3, 8, 8)
    make = build("norm without affine", relu=False)
    expected = make()(x).mean((0, 2, 3))
    wrapped = calibrated(make(), x, preset="WC4_AT8", rewrites=only(FOLD))
    (layer,) = wrapped.module.quantized_layers()
    found = layer.site.fold(layer.operation, layer.weight, layer.bias)[1]
    before = make()
    plain = (before.layer.bias - before.norm.running_mean) / (before.norm.running_var + before.norm.eps).sqrt()
    assert torch.allclose(found - (plain * -0.7 + 0.2), layer.bias_shift, atol=1e-5)
    assert (wrapped(x).mean((0, 2, 3)) - expected).abs().max() < 0.02


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
def test_files_agree(preset, tmp_path):
    x = images(4, 3, 8, 8)
    assert_files_agree(calibrated(build("norm")(), x, preset=preset, rewrites=only(FOLD)), x, folder=tmp_path)


def test_one_rounding_is_more_accurate_than_three():
    x = images(16, 3, 8, 8)
    expected = build("norm")()(x)
    errors = [
        (calibrated(build("norm")(), x, rewrites=only(FOLD, wanted))(x) - expected).norm() for wanted in (True, False)
    ]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("expression", [
    lambda y: y * 0,
    lambda y: y * float("inf"),
    lambda y: 2 / (y.abs() + 1),
    lambda y: torch.add(y, 1, alpha=2),
    lambda y: torch.div(y, 2, rounding_mode="floor"),
    lambda y: y * y,
    lambda y: y + 2 * y.relu(),
    lambda y: y.sigmoid() * 2,
    lambda y: y ** 2,
], ids=["zero", "infinity", "over", "alpha", "rounded", "square", "read again", "behind", "power"])  # fmt: skip
def test_what_is_not_linear_in_the_output_alone_stays(expression):
    assert changes(Behind(expression).eval(), FOLD) == ()


def test_a_rule_of_its_own_keeps_an_operation():
    rules = {"inherits": "DEFAULT", "rules": [{"name": "mul", "activation": {"bits": 6}}]}
    model = Behind(lambda y: y * 0.3).eval()
    assert edgeq.PTCFxModule(model, rewrites=only(FOLD)).module.changes.each
    assert edgeq.PTCFxModule(model, rules, rewrites=only(FOLD)).module.changes.each == ()
    kept = {"inherits": "DEFAULT", "rules": [{"name": "layer", "quantize": False}]}
    model.second = nn.Conv2d(6, 6, 1)
    model.expression = lambda y: model.second(y * 0.3)
    assert edgeq.PTCFxModule(model, kept, rewrites=only(FOLD)).module.changes.each == ()


@pytest.mark.parametrize(("expression", "expected"), [
    (lambda y: y * 2 * 3, ["mul"]),
    (lambda y: y * 2 / 4 * 3, ["mul"]),
    (lambda y: 2 * (3 * -y), ["mul"]),
    (lambda y: y + 1 - 3, ["add"]),
    (lambda y: y.mul(2).add(1).add(2), ["mul", "add"]),
    (lambda y: y * 2 + 1, ["mul", "add"]),
    (lambda y: y * 2 * y, ["mul", "mul"]),
], ids=range(7))  # fmt: skip
def test_operations_that_only_multiply_or_only_add_are_one(expression, expected):
    make = lambda: Behind(lambda y: expression(y.sigmoid())).eval()  # noqa: E731
    wrapped = edgeq.PTCFxModule(make(), rewrites=only(MERGE))
    assert kinds(wrapped)[2:] == expected
    with torch.no_grad():
        assert torch.allclose(wrapped.module.run_float(images()), make()(images()), rtol=1e-6, atol=1e-6)
    wrapped.train()
    wrapped(images())
    assert_exact(wrapped.eval(), images())


def test_a_product_that_is_read_twice_is_not_merged():
    model = Behind(lambda y: (lambda z: z * 3 + z)(y.sigmoid() * 2)).eval()
    assert changes(model, MERGE) == ()


def test_arithmetic_on_integers_stays_integer():
    class Places(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.linear = nn.Embedding(40, 4), nn.Linear(4, 4)

        def forward(self, ids):
            return self.linear(self.table((ids * 2 * 2 + 1 + 1).long() - 1))

    ids = torch.arange(6).reshape(2, 3)
    model = edgeq.PTCFxModule(Places().eval(), example_inputs=ids).train()
    model(ids)
    assert model.eval()(ids).shape == (2, 3, 4)
    assert "scalar_merging" not in model.explain()
