"""The parts of what a recurrent layer returns, each a node, however the tuple is taken apart."""

import pytest
import torch
from torch import fx, nn

from edgeq.graph.part import part
from edgeq.graph.trace import trace
from edgeq.graph.tuples import name_parts
from tests.graph.parity import assert_exact, calibrated, images, leaves

X = images(4, 3, 6)


class Reads(nn.Module):
    def __init__(self, kind, read):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.again, self.read = kind(6, 5), kind(5, 5), read

    def forward(self, x):
        return self.read(self, self.rnn(x))


READS = {
    "outputs": (lambda m, r: r[0], {"outputs"}),
    "last output": (lambda m, r: r[0][-1], {"outputs"}),
    "hidden": (lambda m, r: r[1][0], {"hidden"}),
    "cell": (lambda m, r: r[1][1], {"cell"}),
    "cell from the end": (lambda m, r: r[-1][-1], {"cell"}),
    "unpacked": (lambda m, r: (lambda o, hc: hc[0] + o[-1:])(*(r[0], r[1])), {"outputs", "hidden"}),
    "whole": (lambda m, r: r, {"outputs", "hidden", "cell"}),
    "state": (lambda m, r: r[1], {"hidden", "cell"}),
    "slice": (lambda m, r: r[:1], {"outputs"}),
    "state to the next layer": (lambda m, r: m.again(r[0], r[1])[0], {"outputs", "hidden", "cell", "outputs_1"}),
}


def parts_of(model):
    graph = trace(model)
    name_parts(graph, model)
    graph.lint()
    return graph, {node.name for node in graph.nodes if node.target is part}


@pytest.mark.parametrize("name", READS)
def test_a_reader_of_an_lstm_reads_its_parts(name):
    read, expected = READS[name]
    model = Reads(nn.LSTM, read).eval()
    graph, found = parts_of(model)
    assert found == expected
    rnn = next(node for node in graph.nodes if node.target == "rnn")
    assert all(user.target is part for user in rnn.users)
    with torch.no_grad():
        one, other = leaves(fx.GraphModule(model, graph)(X)), leaves(model(X))
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_a_state_of_one_tensor_is_one_part(kind):
    _, found = parts_of(Reads(kind, lambda m, r: m.again(r[0], r[1])[0]).eval())
    assert found == {"outputs", "hidden", "outputs_1"}


def test_each_part_has_a_range_of_its_own_and_a_state_keeps_it():
    wrapped = calibrated(Reads(nn.LSTM, READS["state to the next layer"][0]).eval(), X)
    names = [quantizer.name for quantizer in wrapped.module.quantizers()]
    assert names == ["x", "rnn_outputs", "rnn_hidden", "rnn_cell", "again_outputs_1"]
    second = next(node for node in wrapped.module.fx_graph.nodes if node.target == "again")
    assert [node.target for node in second.all_input_nodes] == [
        f"quantization.tensors.rnn_{name}" for name in ("outputs", "hidden", "cell")
    ]
    assert_exact(wrapped, X)
