"""Cells written out: PyTorch's numbers in float, integers throughout when they are quantized."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import edgeq
from edgeq import QConfigMapping
from edgeq.graph.trace import trace
from edgeq.modules.codes import Dequantize
from tests.graph.parity import AS_WRITTEN, assert_exact, calibrated, images, relative_error

CELLS = [
    (nn.RNNCell, {}),
    (nn.RNNCell, {"nonlinearity": "relu", "bias": False}),
    (nn.GRUCell, {}),
    (nn.GRUCell, {"bias": False}),
    (nn.LSTMCell, {}),
    (nn.LSTMCell, {"bias": False}),
]
X = images(8, 3, 6)  # batch, steps, features


class Steps(nn.Module):
    """A loop over three steps, from no state or from one that is given."""

    def __init__(self, kind=nn.GRUCell, **options):
        super().__init__()
        torch.manual_seed(0)
        self.cell = kind(6, 5, **options)

    def forward(self, x, state=None):
        for step in range(3):
            state = self.cell(x[:, step], state)
        return state


@pytest.mark.parametrize(("kind", "options"), CELLS)
def test_a_cell_that_is_written_out_is_pytorchs(kind, options):
    model = Steps(kind, **options).eval()
    graph = fx.GraphModule(model, trace(model))
    assert "cell" not in {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    with torch.no_grad():
        assert relative_error(graph(X), model(X)) < 1e-6
        alone = nn.Sequential(model.cell)
        assert relative_error(fx.GraphModule(alone, trace(alone))(X[0, 0]), alone(X[0, 0])) < 1e-6  # without a batch


@pytest.mark.parametrize(("kind", "options"), CELLS)
def test_a_quantized_cell_runs_in_integers_and_keeps_keys_and_parameters(kind, options):
    model = Steps(kind, **options).eval()
    wrapped = calibrated(model, X)
    assert relative_error(wrapped(X), model(X)) < 0.05
    layers = wrapped.module.quantized_layers()
    assert [layer.site.name for layer in layers][:2] == ["cell.linear", "cell.linear_1"]
    assert len(layers) == 6
    assert all(layer.weight is (model.cell.weight_ih, model.cell.weight_hh)[i % 2] for i, layer in enumerate(layers))
    assert {*model.state_dict()} <= {*wrapped.module.state_dict()}
    assert not [reason for reason in wrapped.module.reasons.values() if "stays float" in reason]
    assert_exact(wrapped, X)


class ByHand(nn.Module):
    """An LSTM cell as a user would write it."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x, h, c):
        of_input = F.linear(x, self.cell.weight_ih, self.cell.bias_ih)
        of_state = F.linear(h, self.cell.weight_hh, self.cell.bias_hh)
        i, f, g, o = (of_input + of_state).split(5, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Once(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x, h, c):
        return self.cell(x, (h, c))


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2", "WC4_AT8"])
def test_a_cell_equals_the_one_written_by_hand_bit_for_bit(preset):
    cell, inputs = nn.LSTMCell(6, 5).eval(), (X[:, 0], images(8, 5, seed=1), images(8, 5, seed=2))
    found, expected = (
        calibrated(model.eval(), *inputs, preset=preset, rewrites=AS_WRITTEN)
        for model in (Once(copy.deepcopy(cell)), ByHand(cell))
    )
    for one, other in zip(assert_exact(found, *inputs), assert_exact(expected, *inputs), strict=True):
        assert torch.equal(one, other)


def test_the_first_state_is_zeros_of_a_known_range():
    wrapped = calibrated(Steps().eval(), X)
    (zeros,) = [quantizer for quantizer in wrapped.module.quantizers() if "zero_state" in quantizer.name]
    assert zeros.fixed == (-1.0, 1.0)
    assert "zero_state" in wrapped.module.fx_graph.python_code("self").src


def test_in_a_converted_loop_nothing_real_is_multiplied_with_weights():
    converted = calibrated(Steps(nn.LSTMCell).eval(), X).convert().module
    assert not [name for name, value in converted.named_buffers() if value.is_floating_point() and value.dim() > 1]
    last = next(node for node in converted.fx_graph.nodes if node.op == "output")
    makers = [converted.get_submodule(str(node.target)) for node in last.all_input_nodes]
    assert all(isinstance(maker, Dequantize) for maker in makers)


def test_training_reaches_the_parameters_of_a_cell():
    model, plain = Steps(), Steps()
    wrapped = edgeq.QATFxModule(model, total_epochs=4).train()
    for network in (wrapped, plain):
        network(X).square().sum().backward()
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.cosine_similarity(found.grad.flatten(), expected.grad.flatten(), 0) > 0.95
    assert_exact(wrapped.eval(), X)


@pytest.mark.parametrize("by", ["type", "name"])
def test_a_rule_leaves_a_cell_in_float(by):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.cell = nn.Linear(6, 6), nn.GRUCell(6, 5)

        def forward(self, x):
            return self.cell(self.fc(x))

    mapping = QConfigMapping()
    mapping = mapping.set_object_type(nn.GRUCell, None) if by == "type" else mapping.set_module_name("cell", None)
    wrapped = edgeq.prepare_fx(Two().eval(), mapping)
    assert [layer.site.name for layer in wrapped.module.quantized_layers()] == ["fc"]
    reasons = [reason for reason in wrapped.module.reasons.values() if "by the rule" in reason]
    assert len(reasons) >= 10


def test_a_cell_that_is_named_stays_whole_and_says_why():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.cell = nn.Linear(6, 6), nn.GRUCell(6, 5)

        def forward(self, x):
            return self.fc(x), self.cell(x)

    model = Two().eval()
    wrapped = calibrated(model, X[:, 0], untraced=[nn.GRUCell])
    assert wrapped.module.reasons["cell"].startswith("stays float: one opaque call")
    assert type(wrapped.convert().module.cell) is nn.GRUCell
    assert relative_error(wrapped(X[:, 0]), model(X[:, 0])) < 0.02
