"""Look-ups in files: the table is one int8 initializer, of which only the rows that are asked for become real."""

import numpy as np
import pytest
import torch
from torch import nn

import edgeq
from tests.graph.parity import calibrated
from tests.modules.test_embedding import IDS, PER_ROW, PER_TABLE, Bagged, Words
from tests.onnx.ort import nodes_of, numbers, written


def table_in(file):
    """The name of the table's initializer, after a check that it is there once and no float one is."""
    tables = {name: value for name, value in numbers(file).items() if value.shape == (10, 6)}
    ((name, value),) = tables.items()
    assert value.dtype in (np.int8, np.uint8)
    return name


@pytest.mark.parametrize("preset", [PER_ROW, PER_TABLE])
@pytest.mark.parametrize("kind", ["qdq", "integer"])
@pytest.mark.parametrize("opset", [17, 18])
def test_a_file_with_a_table_computes_the_same(preset, kind, opset, tmp_path):
    wrapped = calibrated(Words().eval(), IDS, preset=preset)
    result = wrapped.export(IDS, tmp_path / "model.onnx", opset_version=opset, format=kind)
    assert result.passed, str(result)
    assert [parity.unequal for parity in result.parity] == [0, 0]


@pytest.mark.parametrize("kind", ["qdq", "integer"])
@pytest.mark.parametrize("preset", [PER_ROW, PER_TABLE])
def test_codes_are_picked_before_anything_is_dequantized(preset, kind):
    file = written(calibrated(Words().eval(), IDS, preset=preset), IDS, format=kind, verify=False)
    name = table_in(file)
    assert [node.op_type for node in file.graph.node if name in node.input] == ["Gather"]


def test_codes_of_a_table_with_one_scale_are_the_input_of_the_next_layer():
    file = written(calibrated(Words().eval(), IDS, preset=PER_TABLE), IDS, format="integer", verify=False)
    (gather,), (product,) = nodes_of(file, "Gather"), nodes_of(file, "MatMulInteger")
    assert product.input[0] == gather.output[0] == "table/codes"


def test_rows_have_their_scale_gathered_beside_them():
    file = written(calibrated(Words().eval(), IDS, preset=PER_ROW), IDS, verify=False)
    assert [node.op_type for node in file.graph.node[:4]] == ["Gather", "Cast", "Gather", "Mul"]
    assert numbers(file)["table.weight_scale"].shape == (10, 1)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 5])
def test_bags_of_equal_length_are_reductions(mode, padding, tmp_path):
    wrapped = calibrated(Bagged(mode=mode, padding_idx=padding).eval(), IDS, example_inputs=IDS)
    result = wrapped.export(IDS, tmp_path / "model.onnx")
    assert result.passed, str(result)
    reductions = {"sum": "ReduceSum", "mean": "ReduceMean" if padding is None else "ReduceSum", "max": "ReduceMax"}
    assert reductions[mode] in result.nodes
    assert "Loop" not in result.nodes


class Positions(nn.Module):
    """Tokens and their places, which are the same in each call of a file of fixed size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places, self.last = nn.Embedding(50, 8), nn.Embedding(16, 8), nn.Linear(8, 4)

    def forward(self, tokens):
        return self.last(self.tokens(tokens) + self.places(torch.arange(tokens.size(1))))


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
def test_rows_that_are_the_same_in_every_call_are_constants_of_the_file(tmp_path, preset, opset):
    tokens = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    model = edgeq.PTCFxModule(Positions().eval(), preset, example_inputs=tokens).calibrate([tokens])
    result = model.export(tokens, tmp_path / "model.onnx", opset_version=opset)
    assert result.passed
    unequal = sum(tensor.unequal for parity in result.parity for tensor in parity.tensors)
    assert unequal == 0 or preset == "WC8_AT8"
