"""What is done to codes is what is done to the numbers that they stand for."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from edgeq.graph.movers import mover
from edgeq.modules.integer import Codes
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.spec import Method, TensorSpec
from tests.graph.parity import images


def codes_of(symmetric, low=-3.0, high=5.0):
    """How a tensor between `low` and `high` is kept: int8 with zero point 0, or uint8 with another."""
    quantizer = TensorQuantizer("x", TensorSpec(symmetric=symmetric), Method("minmax"))
    quantizer.observer.observe(torch.tensor([low, high]))
    quantizer.refresh()
    return Codes(quantizer)


def node_of(call):
    """The node that a call of one tensor makes in a graph."""
    graph = fx.Tracer().trace(Holder(call))
    return [node for node in graph.nodes if node.op.startswith("call")][-1]


class Holder(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


CALLS = {
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "adaptive": lambda x: F.adaptive_max_pool2d(x, 2),
    "reflect": lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 2, 0, 1), mode="replicate"),
    "nearest": lambda x: F.interpolate(x, scale_factor=3),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "slice": lambda x: x[:, 1:, ::2],
    "relu": lambda x: F.relu(x),
    "amax": lambda x: x.amax((1, 2)),
    "roll": lambda x: torch.roll(x, 1, 3),
    "expand": lambda x: x.expand(2, 4, 6, 6),
    "split": lambda x: x.split([1, 3], 1),
}


MODULES = [nn.ZeroPad2d((1, 2, 0, 3)), nn.ConstantPad2d(2, 0.0), nn.ReflectionPad2d(2), nn.ReLU()]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_moving_codes_is_moving_numbers(name, symmetric, layout):
    node, codes = node_of(CALLS[name]), codes_of(symmetric)
    x = codes.encode(images(2, 4, 6, 6) * 2).contiguous(memory_format=layout)
    arguments = node.args[1:]
    moved = mover(node, None, codes)(x, *arguments, **node.kwargs)
    expected = CALLS[name](codes.decode(x))
    for one, other in zip(moved, expected, strict=True) if isinstance(moved, tuple) else [(moved, expected)]:
        assert one.dtype is codes.zero_point.dtype
        assert torch.equal(codes.decode(one), other)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_modules_that_pad_or_clip_at_zero_know_its_code(module, symmetric):
    codes = codes_of(symmetric)
    assert symmetric == (int(codes.zero_point) == 0)
    x = codes.encode(images(2, 4, 6, 6) * 2)
    graph = fx.Graph()
    node = graph.call_module("m", (graph.placeholder("x"),))
    assert torch.equal(codes.decode(mover(node, module, codes)(x)), module(codes.decode(x)))


@given(low=st.floats(-1e4, 0), high=st.floats(0, 1e4), symmetric=st.booleans(), pad=st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_padding_is_exactly_zero_in_any_range(low, high, symmetric, pad):
    codes = codes_of(symmetric, low, high)
    node = node_of(lambda x: F.pad(x, (pad, pad)))
    padded = mover(node, None, codes)(codes.encode(torch.linspace(low, high, 7)), (pad, pad), "constant", 0)
    assert torch.equal(codes.decode(padded)[:pad], torch.zeros(pad))
    assert torch.equal(codes.decode(padded)[-pad:], torch.zeros(pad))


def test_movers_can_be_pickled():
    codes = codes_of(False)
    x = codes.encode(images(2, 4, 6, 6))
    for call in CALLS.values():
        node = node_of(call)
        module = mover(node, None, codes)
        twin = pickle.loads(pickle.dumps(module))
        found, expected = (m(x, *node.args[1:], **node.kwargs) for m in (twin, module))
        assert torch.equal(found[0], expected[0])
