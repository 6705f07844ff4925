"""The table of a network: one line a node, and why what is not quantized is not."""

import pytest
import torch
from torch import nn

import edgeq
from edgeq.graph.explain import describe_spec
from edgeq.spec import Granularity, ScaleKind, TensorSpec
from tests.graph.parity import images
from tests.networks import NETWORKS, batches, network


def rows(wrapped):
    """The lines of the table, without the rewrites below it, as lists of their columns."""
    header, *lines = wrapped.explain().partition("\n\n")[0].splitlines()
    starts = [header.index(word) for word in ("node", "weight", "folded", "value")]
    ends = [*starts[1:], None]
    return [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines]


@pytest.mark.parametrize("name", NETWORKS)
def test_there_is_a_line_for_each_node_and_each_quantizer_stands_in_one(name):
    wrapped = edgeq.PTCFxModule(network(name))
    table = rows(wrapped)
    inner = [node for node in wrapped.module.fx_graph.nodes if node.op not in ("placeholder", "output")]
    assert len(table) == len(inner)
    named = {value.split("[")[1].rstrip("]") for *_, value in table if "[" in value}
    assert named == {quantizer.name for quantizer in wrapped.module.quantizers()}
    layers = [name for name, weight, *_ in table if weight]
    assert layers == [layer.site.name for layer in wrapped.module.quantized_layers()]


def test_the_table_does_not_change_with_calibration():
    wrapped = edgeq.PTCFxModule(network("attention"))
    before = wrapped.explain()
    assert wrapped.calibrate(batches(1)).explain() == before


def test_no_line_ends_in_blanks_and_no_reason_is_empty():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.lstm = nn.Linear(4, 4), nn.LSTM(4, 4)

        def forward(self, x):
            y = self.lstm(self.linear(x))[0]
            return y.topk(2, 1), torch.where(y > 0, y, 1.0), torch.cumsum(y, 1), nn.functional.max_pool1d(y, 2)

    wrapped = edgeq.PTCFxModule(Many())
    lines = wrapped.explain().splitlines()
    assert all(line == line.rstrip() for line in lines)
    reasons = {name: value for name, *_, value in rows(wrapped)}
    assert reasons["lstm"] == "the loop over time inside of the call computes in float, with weights from integers"
    assert reasons["topk"] == "stays float: it works on values and their places together"
    assert reasons["gt"] == "never touched: no floating tensor"


def test_folded_parts_are_told():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Hardtanh(-0.5, 2), nn.Conv2d(4, 4, 1), nn.ReLU())
    table = rows(edgeq.PTCFxModule(model, "WC4M4_AT8"))
    assert [row[2] for row in table if row[1]] == ["norm, clip -0.5..2", "clip 0.."]


@pytest.mark.parametrize(("spec", "words"), [
    (TensorSpec(), "8 bits affine tensor free"),
    (TensorSpec(bits=4, symmetric=True, granularity=Granularity.CHANNEL), "4 bits symmetric channel free"),
    (TensorSpec(scale=ScaleKind.POWER_OF_TWO, reduce_range=True), "7 bits affine tensor power_of_two"),
])  # fmt: skip
def test_a_spec_in_words(spec, words):
    assert describe_spec(spec) == words


def test_the_reduced_range_of_a_backend_shows():
    wrapped = edgeq.PTCFxModule(network("residual"), "WC8_AT8", backend="x86")
    assert rows(wrapped)[0] == ["quantize x", "", "", "7 bits affine tensor free [x]"]
    wrapped.calibrate([images(4, 3, 16, 16)])
    quantizer = wrapped.module.quantizers()[0]
    assert (int(quantizer.quant_min), int(quantizer.quant_max)) == (0, 127)
