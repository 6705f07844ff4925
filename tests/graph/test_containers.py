"""Inputs and outputs in tuples, lists, dicts and named tuples."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.graph.parity import assert_exact, calibrated, images


class Pair(NamedTuple):
    image: Tensor
    features: Tensor


class Network(nn.Module):
    """`read` takes the input apart, `give` puts the outputs together."""

    def __init__(self, read, give=lambda *values: values):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(5, 4)
        self.read, self.give = read, give

    def forward(self, bundle):
        image, features = self.read(bundle)
        return self.give(self.conv(image), self.linear(features))


IMAGE, FEATURES = images(), images(2, 5) * 20
INPUTS = {
    "tuple": (lambda b: (b[0], b[1]), (IMAGE, FEATURES)),
    "list": (lambda b: (b[0], b[1]), [IMAGE, FEATURES]),
    "dict": (lambda b: (b["image"], b["features"]), {"image": IMAGE, "features": FEATURES}),
    "nested": (lambda b: (b["x"][0], b["x"][1]["y"]), {"x": (IMAGE, {"y": FEATURES})}),
    "named tuple": (lambda b: (b.image, b.features), Pair(IMAGE, FEATURES)),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_each_tensor_of_an_input_gets_a_range_of_its_own(kind):
    read, bundle = INPUTS[kind]
    model = Network(read).eval()
    wrapped = calibrated(model, bundle)
    found = assert_exact(wrapped, bundle)
    conv, linear = wrapped.module.quantized_layers()
    assert float(linear.site.source.scale) > 10 * float(conv.site.source.scale)
    for one, other, layer in zip(found, model(bundle), (conv, linear), strict=True):
        assert (one - other).abs().max() < 6 * layer.site.target.scale


OUTPUTS = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"a": a, "b": [b, {"c": a}]},
    "with what is no tensor": lambda a, b: {"a": a, "name": "x", "n": 3, "none": None, "flag": True},
    "parts": lambda a, b: a.chunk(2, 1),
    "unbound": lambda a, b: {"rows": b.unbind(0), "all": b},
    "named tuple": lambda a, b: Pair(a, b),
    "the same twice": lambda a, b: (a, a, a * 2),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_keep_their_structure(kind):
    model = Network(INPUTS["tuple"][0], OUTPUTS[kind]).eval()
    wrapped = calibrated(model, (IMAGE, FEATURES))
    assert_exact(wrapped, (IMAGE, FEATURES))
    expected = model((IMAGE, FEATURES))
    for found in (wrapped((IMAGE, FEATURES)), wrapped.convert()((IMAGE, FEATURES))):
        assert torch.utils._pytree.tree_structure(found) == torch.utils._pytree.tree_structure(expected)
        assert type(found) is type(expected)


def test_keyword_and_default_arguments():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 4)

        def forward(self, x, factor=2.0, *, offset=1.0):
            return self.linear(x) * factor + offset

    model = Optional().eval()
    wrapped = calibrated(model, FEATURES)
    assert_exact(wrapped, FEATURES)
    with torch.no_grad():
        converted = wrapped.convert()
        halved = converted(FEATURES, 1.0, offset=0.0)
        assert torch.equal(halved, wrapped(FEATURES, offset=0.0, factor=1.0))
        steps = (converted(FEATURES) - 2 * halved - 1) / wrapped.module.quantizers()[-1].scale
        assert steps.abs().max() <= 2


def test_a_network_of_two_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, left, right):
            return self.linear(left) * right

    model = Two().eval()
    wrapped = calibrated(model, FEATURES, FEATURES * 3)
    assert_exact(wrapped, FEATURES, FEATURES * 3)
    scales = {quantizer.name: float(quantizer.scale) for quantizer in wrapped.module.quantizers()}
    assert scales["right"] == pytest.approx(3 * scales["left"], rel=1e-3)
