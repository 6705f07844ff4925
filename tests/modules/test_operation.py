"""How a layer's weight lies: every view of it is checked against what the float layer does with it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

from edgeq.modules.operation import Operation

KINDS = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


@st.composite
def convolutions(draw):
    """A convolution of any kind, and a small input for it."""
    kind = draw(st.sampled_from(KINDS))
    rank = int(kind.__name__[-2])
    groups = draw(st.integers(1, 3))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    torch.manual_seed(draw(st.integers(0, 999)))
    module = kind(inputs, outputs, kernel, stride, draw(st.integers(0, 1)), groups=groups, dilation=dilation)
    return module, torch.randn(2, inputs, *[5] * rank)


@settings(deadline=None, max_examples=60)
@given(convolutions())
def test_the_operation_of_a_module_does_what_the_module_does(pair):
    module, x = pair
    operation = Operation.of_module(module)
    assert torch.equal(operation(x, module.weight, module.bias), module(x))
    assert operation.channels(module.weight) == module.out_channels
    assert module(x).shape[operation.channel_axis] == module.out_channels
    assert module.weight.shape[operation.input_axis] * (1 if operation.transposed else module.groups) == (
        module.in_channels
    )
    assert operation.groups == module.groups


@settings(deadline=None, max_examples=60)
@given(convolutions())
def test_a_row_holds_the_weights_of_one_output_channel(pair):
    module, x = pair
    operation = Operation.of_module(module)
    rows = operation.rows(module.weight)
    fan_in = module.in_channels // module.groups * module.weight[0, 0].numel()
    assert rows.shape == (module.out_channels, fan_in)
    assert torch.equal(operation.from_rows(rows, module.weight), module.weight)
    channel = int(torch.randint(module.out_channels, ()))
    zeroed = rows.clone()
    zeroed[channel] = 0
    changed = operation(x, operation.from_rows(zeroed, module.weight), None) - operation(x, module.weight, None)
    others = changed.movedim(operation.channel_axis, 0)
    untouched = others[[c for c in range(module.out_channels) if c != channel]]
    assert torch.allclose(untouched, torch.zeros_like(untouched), atol=1e-6)
    assert changed.abs().max() > 1e-4 or changed.numel() == 0


@settings(deadline=None, max_examples=60)
@given(convolutions())
def test_a_factor_for_each_output_scales_the_weight_as_it_scales_the_output(pair):
    module, x = pair
    operation = Operation.of_module(module)
    factor = torch.randn(module.out_channels)
    scaled = operation(x, module.weight * operation.per_output(factor, module.weight), None)
    output = operation(x, module.weight, None)
    assert torch.allclose(scaled, output * operation.spread(factor, output), atol=1e-5)


def test_groups_of_a_transposed_convolution_share_the_scales_of_its_weight():
    operation = Operation.of_module(nn.ConvTranspose2d(4, 6, 3, groups=2))
    assert operation.to_channels(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1, 2, 3, 1, 2, 3]
    assert operation.to_channels(torch.tensor(5.0)).tolist() == 5
    plain = Operation.of_module(nn.Conv2d(4, 6, 3, groups=2))
    assert plain.to_channels(torch.arange(6.0)).tolist() == [0, 1, 2, 3, 4, 5]


CALLS = {
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, 2, 1), lambda: nn.Conv2d(4, 6, 3, 2, 1)),
    "keywords": (
        lambda x, w, b: F.conv2d(x, w, bias=b, padding=[1, 0], groups=2),
        lambda: nn.Conv2d(4, 6, 3, 1, (1, 0), groups=2),
    ),
    "same": (lambda x, w, b: F.conv2d(x, w, b, padding="same"), lambda: nn.Conv2d(4, 6, 3, padding="same")),
    "conv1d": (lambda x, w, b: F.conv1d(x, w, b, 1, 2, 2), lambda: nn.Conv1d(4, 6, 3, 1, 2, 2)),
    "transposed": (
        # the functions for transposed convolutions take groups before dilation, those for others after it
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 1, 2, 3),
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=3),
    ),
    "linear": (lambda x, w, b: F.linear(x, w, b), lambda: nn.Linear(4, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_a_function_is_the_operation_of_the_module_that_does_the_same(name):
    call, make = CALLS[name]

    class Caller(nn.Module):
        def forward(self, x, w, b):
            return call(x, w, b)

    (node,) = (node for node in fx.symbolic_trace(Caller()).graph.nodes if node.op == "call_function")
    operation, module = Operation.of_call(node), make()
    x = torch.randn(2, 4) if name == "linear" else torch.randn(2, 4, *[7] * (module.weight.dim() - 2))
    assert torch.equal(operation(x, module.weight, module.bias), module(x))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(2, 1), "same"])
def test_padding_of_any_kind_is_the_modules(mode, padding):
    module = nn.Conv2d(2, 3, (4, 3), padding=padding, padding_mode=mode)
    x = torch.randn(1, 2, 6, 7)
    assert torch.equal(Operation.of_module(module)(x, module.weight, module.bias), module(x))
