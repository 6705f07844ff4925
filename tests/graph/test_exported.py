"""Capture by example: the graph computes what the model does, at other sizes too or not at all, in either mode."""

import dataclasses
import logging
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import edgeq
from edgeq.errors import TraceError
from edgeq.graph.capture import capture
from edgeq.graph.exported import _compare, trace_exported
from tests.graph.parity import assert_exact, calibrated, images, leaves, relative_error


class Looking(nn.Module):
    """A function of parts and images, after a look at the shape that symbolic tracing cannot follow."""

    def __init__(self, function, **parts):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        assert len(x.shape) == 4
        return self.function(self, x)


def norm():
    made = nn.BatchNorm2d(4)
    nn.init.uniform_(made.weight, 0.5, 1.5)
    made.running_mean.normal_(0, 0.3)
    made.running_var.uniform_(0.5, 2)
    return made


def float_network(model, x):
    return edgeq.PTCFxModule(model.eval(), "WC8_AT8", example_inputs=x).module.run_float


def assert_same(found, expected):
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for ours, theirs in zip(leaves(found), leaves(expected), strict=True):
        if isinstance(theirs, torch.Tensor):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=3e-6)
        else:
            assert ours == theirs


# ---- what a forward may do


def body(m, x):
    return m.fc(F.relu(m.norm(m.conv(x))).mean((2, 3)))


def in_place(m, x):
    y = m.relu(m.norm(m.conv(x)))
    y += 1
    y[:, 0] = 0
    y[:, 1:3].mul_(2)
    return y.add_(x.mean()).clamp_(0, 3)


def twice(m, x):
    return m.norm(m.conv(x)) + m.norm(m.conv(x * 2))


def functional_layer(m, x):
    return F.linear(m.conv(x).mean((2, 3)), m.weight, m.bias)


def recurrent(m, x):
    y, (hidden, cell) = m.lstm(m.conv(x).flatten(1, 2))
    return y, hidden + cell


def recurrent_from_a_state(m, x):
    state = torch.zeros(1, x.shape[0], 6)
    return m.lstm(m.conv(x).flatten(1, 2), (state, state))[0]


def makes_tensors(m, x):
    y = m.conv(x) + torch.zeros(x.shape[0], 4, 1, 1, device=x.device) + torch.ones_like(x).sum(1, keepdim=True)
    return y * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1) + m.shift


def counts_positions(m, x):
    return m.conv(x) + m.rows(torch.arange(x.shape[3])).t().reshape(1, 4, 1, -1)


def builds_a_list(m, x):
    return torch.cat([m.conv(x[:, index : index + 1].expand(-1, 3, -1, -1)) for index in range(x.shape[1])], 1)


def loops_over_the_shape(m, x):
    y = m.conv(x)
    for size in y.shape[2:]:
        y = y / size
    return y


def takes_halves(m, x):
    batch, _, height, width = x.shape
    y = m.conv(x)[:, :, height // 2 :].permute(0, 2, 3, 1)
    return m.fc(y.reshape(batch, -1, 4)).view(batch, height - height // 2, width, 5)


def resizes(m, x):
    y = m.conv(x)
    larger = F.interpolate(y, size=(x.shape[2] * 2, x.shape[3] + 1), mode="bilinear")
    return larger + F.pad(y, (0, 1)).repeat(1, 1, 2, 1)


def attends(m, x):
    y = m.conv(x).flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(y, y, y, is_causal=True)


PARTS = {
    body: lambda: {"norm": norm()},
    in_place: lambda: {"norm": norm(), "relu": nn.ReLU(inplace=True)},
    twice: lambda: {"norm": norm()},
    functional_layer: lambda: {"weight": nn.Parameter(images(6, 4)), "bias": nn.Parameter(images(6))},
    recurrent: lambda: {"lstm": nn.LSTM(8, 6, batch_first=True)},
    recurrent_from_a_state: lambda: {"lstm": nn.LSTM(8, 6, batch_first=True)},
    makes_tensors: lambda: {"shift": nn.Buffer(images(4, 1, 1), persistent=False)},
    counts_positions: lambda: {"rows": nn.Embedding(20, 4)},
    **dict.fromkeys((builds_a_list, loops_over_the_shape, takes_halves, resizes, attends), dict),
}
FIXED_HEIGHT = (recurrent, recurrent_from_a_state)  # by their layer
SIZES = {"alone": (1, 3, 8, 8), "many": (5, 3, 8, 8), "high": (2, 3, 12, 8), "wide": (2, 3, 8, 10)}


def made(function):
    torch.manual_seed(1)
    return Looking(function, **PARTS[function]()).eval()


@pytest.mark.parametrize("examples", [1, 2], ids=["one image", "two images"])
@pytest.mark.parametrize("function", PARTS)
def test_the_graph_computes_what_the_model_does_at_every_batch_and_image_size(function, examples):
    model = made(function)
    network = float_network(model, images(examples, 3, 8, 8))
    with torch.no_grad():
        for name, shape in SIZES.items():
            x = images(*shape, seed=3)
            if not (function in FIXED_HEIGHT and name in ("high", "wide")):
                assert_same(network(x), model(x))


def quantized(function):
    wrapped = calibrated(made(function), images(), preset="WC8_AT8", example_inputs=images())
    return wrapped, {layer.site.name for layer in wrapped.module.quantized_layers()}


@pytest.mark.parametrize("function", PARTS)
def test_it_is_quantized_converts_exactly_and_is_near_the_model(function):
    wrapped, layers = quantized(function)
    assert any("conv" in name for name in layers)
    assert "not in edgeq's table" not in wrapped.explain()
    assert relative_error(assert_exact(wrapped, images()), made(function)(images())) < 0.05


def test_layers_are_the_users_modules_and_norms_are_folded_into_them():
    wrapped, layers = quantized(body)
    assert layers == {"conv", "fc"}
    assert [str(quantizer.name) for quantizer in wrapped.module.quantizers()] == ["x", "conv", "mean", "fc"]
    assert "norm, clip 0.." in wrapped.explain()
    wrapped, layers = quantized(functional_layer)
    assert layers == {"conv", "linear"}
    assert wrapped.module.get_parameter("weight") is not None


# ---- structures


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    features: torch.Tensor | None = None


pytree.register_dataclass(Result)
OUTPUTS = {
    "dict": lambda y: {"a": y, "b": [y + 1, (y * 2,)], "none": None, "number": 3},
    "list": lambda y: [y, y + 1],
    "named tuple": lambda y: Pair(y, y * 2),
    "dataclass": lambda y: Result(y),
    "a tensor twice": lambda y: (y, y),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_keep_their_structure(name):
    model = Looking(lambda m, x: OUTPUTS[name](m.conv(x))).eval()
    wrapped = calibrated(model, images(), example_inputs=images())
    found, expected = wrapped(images()), model(images())
    assert type(found) is type(expected)
    assert type(wrapped.convert()(images())) is type(expected)
    if name == "dataclass":
        found, expected = vars(found), vars(expected)
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    assert relative_error(found, expected) < 0.02


# ---- modes


def test_norms_and_dropouts_follow_the_mode_as_in_the_float_model():
    def model():
        torch.manual_seed(1)
        drop = nn.Dropout(0.5)
        return Looking(lambda m, x: F.dropout(m.drop(m.norm(m.conv(x))), 0.25, m.training), norm=norm(), drop=drop)

    own, twin = model().train(), model().train()
    wrapped = edgeq.QATFxModule(own, total_epochs=1, num_observer_update_epochs=0, example_inputs=images()).train()
    for _ in range(2):
        torch.manual_seed(5)
        expected = twin(images())
        torch.manual_seed(5)
        torch.testing.assert_close(wrapped(images()), expected)
    assert torch.equal(own.norm.running_mean, twin.norm.running_mean)
    assert torch.equal(own.norm.running_var, twin.norm.running_var)
    assert int(own.norm.num_batches_tracked) == int(twin.norm.num_batches_tracked) == 2
    torch.testing.assert_close(wrapped.eval()(images()), twin.eval()(images()))
    assert torch.equal(wrapped(images()), wrapped(images()))


# ---- what cannot be


def test_failing_both_ways_is_one_error_with_both_reasons():
    deciding = Looking(lambda m, x: m.conv(x) if bool(x.sum() > 0) else x)
    with pytest.raises(TraceError) as caught:
        capture(deciding, example_inputs=images())
    message = str(caught.value)
    assert "The model cannot be traced: 'len' is not supported" in message
    assert "torch.export: Could not guard on data-dependent expression" in message


def test_it_is_told_in_the_log_and_pytorchs_own_printing_is_not(caplog, capfd):
    with caplog.at_level(logging.INFO, "edgeq"):
        edgeq.PTCFxModule(Looking(body, norm=norm()), example_inputs=images())
    assert "Looking is captured as example_inputs run through it. The model cannot be traced: 'len'" in caplog.text
    with pytest.raises(TraceError):
        capture(Looking(lambda m, x: m.conv(x) if bool(x.sum() > 0) else x), example_inputs=images())
    assert "def forward" not in capfd.readouterr().err


def test_a_graph_that_computes_something_else_is_refused():
    model, given = Looking(body, norm=norm()).eval(), images()
    graph = trace_exported(model, (), given)
    bound = edgeq.graph.arguments.bound(model, given)
    _compare(model, graph, bound)
    model.fc.bias.data.add_(1.0)
    _compare(model, graph, bound)  # parameters are the model's
    (relu,) = (node for node in graph.nodes if node.target is F.relu or node.target is torch.relu)
    relu.target = torch.sigmoid
    with pytest.raises(TraceError, match=r"The graph that torch.export gave differs from the model by up to \d"):
        _compare(model, graph, bound)


@pytest.mark.parametrize("works", [True, False])
def test_the_model_is_as_before_afterwards(works):
    function = makes_tensors if works else lambda m, x: m.conv(x) if bool(x.sum() > 0) else x
    model = Looking(function, shift=nn.Buffer(images(4, 1, 1)), norm=norm())
    model.train()
    model.norm.eval()
    before = {**vars(model)}, {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    if works:
        edgeq.PTCFxModule(model, example_inputs=images())
    else:
        with pytest.raises(TraceError):
            capture(model, example_inputs=images())
    assert vars(model) == before[0]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[1][name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_what_stands_under_autocast_or_no_grad_is_part_of_the_graph():
    class Regions(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)

        def forward(self, x):
            if x.shape[0] == 0:
                return x
            y = self.first(x)
            with torch.autocast("cpu", enabled=False):
                y = self.norm(y.float()) * 2
            with torch.no_grad():
                mean = x.mean(-1, keepdim=True)
            return self.last(y + mean)

    torch.manual_seed(0)
    model, x = Regions().eval(), images(6, 8)
    wrapped = calibrated(model, x, example_inputs=x)
    assert [layer.site.name for layer in wrapped.module.quantized_layers()] == ["first", "last"]
    (found,) = assert_exact(wrapped, x)
    assert (found - model(x)).norm() < 0.05 * model(x).norm()
