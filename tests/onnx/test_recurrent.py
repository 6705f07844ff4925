"""Recurrent layers in files: one node of ONNX a layer, weights as int8 initializers in ONNX's order of gates."""

import io

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeq.errors import ExportError
from tests.graph.parity import calibrated, images
from tests.modules.test_recurrent import Net, state_for
from tests.onnx.ort import nodes_of, numbers, run, written

X = images(4, 3, 6)
TWICE = {"num_layers": 2, "bidirectional": True, "batch_first": True}


class FromState(Net):
    def forward(self, x, *state):
        outputs, last = self.rnn(x, state if len(state) > 1 else state[0])
        return self.fc(outputs), last


def prepared(model, *inputs):
    return calibrated(model.eval(), *inputs, example_inputs=inputs)


@pytest.mark.parametrize(
    ("kind", "options", "opset"),
    [
        (nn.LSTM, {}, 17),
        (nn.LSTM, TWICE, 18),
        (nn.GRU, TWICE, 17),
        (nn.GRU, {"bias": False}, 18),
        (nn.RNN, TWICE, 18),
        (nn.RNN, {"nonlinearity": "relu"}, 17),
    ],
)
@pytest.mark.parametrize("kind_of_file", ["qdq", "integer"])
def test_a_file_has_one_node_a_layer_and_computes_the_same(kind, options, opset, kind_of_file, tmp_path):
    wrapped = prepared(Net(kind, **options), X)
    result = wrapped.export(X, tmp_path / "model.onnx", opset_version=opset, format=kind_of_file)
    assert result.passed, str(result)
    assert all(parity.exact_outputs > 99 for parity in result.parity)
    assert result.nodes[kind.__name__] == options.get("num_layers", 1)
    left_over = {"Slice", "Cast", "Loop", "Gather", "Expand", "Identity"} & {*result.nodes}
    assert left_over <= ({"Cast"} if kind_of_file == "integer" else set())  # of MatMulInteger


@pytest.mark.parametrize("opset", [17, 18])
def test_weights_are_bytes_under_their_names_in_the_order_of_onnx(opset):
    wrapped = prepared(Net(nn.LSTM), X)
    values = numbers(written(wrapped, X, opset_version=opset, verify=False))
    layer = wrapped.convert().module.rnn
    for name, width in (("weight_ih_l0", 6), ("weight_hh_l0", 5)):
        found = values[f"rnn.{name}"]
        i, f, g, o = getattr(layer, name).numpy().reshape(4, 5, width)
        assert found.dtype == np.int8
        assert np.array_equal(found[0].reshape(4, 5, width), np.stack([i, o, f, g]))
        i, f, g, o = getattr(layer, f"{name}_scale").numpy().reshape(4, 5)
        assert np.array_equal(values[f"rnn.{name}_scale"], np.concatenate([i, o, f, g]))
    assert values["rnn.bias_l0"].shape == (1, 40)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_first_state_is_an_input_of_the_node(kind, tmp_path):
    model = FromState(kind, **TWICE)
    state = state_for(model.rnn, X)
    inputs = (X, *state) if kind is nn.LSTM else (X, state)
    wrapped = prepared(model, *inputs)
    assert wrapped.export(inputs, tmp_path / "model.onnx").passed
    file = written(wrapped, inputs, verify=False)
    given = [len([name for name in node.input if name]) for node in nodes_of(file, kind.__name__)]
    assert given == [3 + len(inputs)] * 2  # x, W, R, B and the states


@pytest.mark.parametrize("opset", [17, 18])
def test_the_batch_may_be_dynamic(opset):
    wrapped = prepared(Net(nn.GRU, batch_first=True), X)
    file = written(wrapped, X, opset_version=opset, dynamic_batch=True, verify=False)
    larger = images(9, 3, 6, seed=5)
    with torch.no_grad():
        expected = wrapped(larger)[0].numpy()
    found = run(file, larger, fused=False)["output_0"]
    step = wrapped.module.quantization.tensors.fc.scale.item()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1.01 * step


@pytest.mark.parametrize("opset", [17, 18])
def test_projections_which_onnx_lacks_are_refused(opset, tmp_path):
    wrapped = prepared(Net(nn.LSTM, proj_size=3), X)
    with pytest.raises(ExportError, match="'rnn' has proj_size=3"):
        wrapped.export(X, tmp_path / "model.onnx", opset_version=opset)
    assert not (tmp_path / "model.onnx").exists()


def test_an_exporter_that_is_handed_the_prepared_network_reads_the_layer_once():
    buffer = io.BytesIO()
    torch.onnx.export(prepared(Net(nn.LSTM), X), (X,), buffer, dynamo=False, opset_version=17)
    file = onnx.load_from_string(buffer.getvalue())
    assert len(nodes_of(file, "LSTM")) == 1
    assert len(nodes_of(file, "QuantizeLinear")) == 5 + 3  # input, outputs, two states and result; three weights
