"""Networks deeper than Python's recursion limit: long chains of layers, and modules within modules."""

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import TraceError
from edgeq.graph.trace import trace
from tests.graph.parity import assert_exact, calibrated, images
from tests.graph.test_scale import Functional

LAYERS = 200  # without a branch, each reads what the one before gives


def chain(layers=LAYERS):
    torch.manual_seed(0)
    blocks = [(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(layers)]
    return nn.Sequential(nn.Conv2d(3, 4, 1), *(layer for block in blocks for layer in block)).eval()


def nested(levels):
    """A convolution in a Sequential in a Sequential, each with an activation behind it."""
    model = nn.Conv2d(3, 3, 1)
    for _ in range(levels):
        model = nn.Sequential(model, nn.ReLU())
    return model.eval()


def test_a_long_chain_is_copied_pickled_and_converted():
    x = images(2, 3, 4, 4)
    wrapped = calibrated(chain(), x)
    expected = assert_exact(wrapped, x)[0]
    converted = wrapped.convert()
    twins = [
        twin(module)
        for module in (wrapped, converted)
        for twin in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)))
    ]
    for twin in twins:
        assert torch.equal(twin(x), expected)
    for module in (wrapped, *twins[:2]):
        layers = module.module.quantized_layers()
        assert [layer.readers for layer in layers] == [[layer] for layer in layers[1:]] + [[]]


def test_operations_one_after_the_other_are_walked_without_recursion():
    model, x = Functional(300).eval(), images(2, 3, 4, 4)
    network = edgeq.PTCFxModule(model).module
    assert len(network.quantized_layers()) == 300
    with torch.no_grad():
        assert torch.equal(network.run_float(x), model(x))


def test_a_hundred_levels_of_modules_go_the_whole_way():
    x = images(2, 3, 4, 4)
    wrapped = calibrated(nested(100), x)
    expected = assert_exact(copy.deepcopy(wrapped), x)[0]
    assert torch.equal(pickle.loads(pickle.dumps(wrapped.convert()))(x), expected)


def test_modules_deeper_than_the_recursion_limit_are_told_and_go_once_it_is_raised():
    limit = sys.getrecursionlimit()
    model, x = nested(limit // 6), images(2, 3, 4, 4)
    with pytest.raises(TraceError, match=f"limit of {limit}: its modules lie deeper .* with sys.setrecursionlimit"):
        trace(model)
    sys.setrecursionlimit(4 * limit)
    try:
        wrapped = calibrated(model, x)
        assert [layer.site.name for layer in wrapped.module.quantized_layers()] == [".".join("0" * (limit // 6))]
        assert_exact(copy.deepcopy(wrapped), x)
    finally:
        sys.setrecursionlimit(limit)
