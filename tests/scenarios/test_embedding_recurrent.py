"""Tables, recurrent layers and their cells as PyTorch's own quantization tests use them.

Tested elsewhere: what a look-up and a recurrence compute (tests/modules), what a file of them holds (tests/onnx, both
test_embedding.py and test_recurrent.py), cells (tests/graph/test_cells.py) and tuples (tests/graph/test_tuples.py).
"""

import pytest
import torch
from torch import nn

import edgeq
from edgeq import QConfigMapping, SpecError, prepare_fx, prepare_qat_fx
from edgeq.modules.stored import StoredWeights
from tests.graph.parity import assert_exact, calibrated, images, leaves, relative_error

IDS = torch.tensor([[9, 6, 5, 7], [8, 8, 9, 2], [8, 6, 6, 9]])
X = images(5, 3, 4)  # steps, batch, features


def weights(bits, **options):
    return {"inherits": "WC8_AT8", "weight": {"bits": bits}, **options}


def only_weights(bits=8):
    return weights(bits, weight_only=True)


class Sentence(nn.Module):
    """Words, an LSTM over them, and a linear layer on the last state."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.rnn, self.fc = nn.Embedding(10, 4), nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, ids):
        return self.fc(self.rnn(self.table(ids))[1][0][-1])


class Linear(nn.Module):
    """A table or a bag of rows, and a linear layer."""

    def __init__(self, table):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.fc = table(10, 4), nn.Linear(4, 3)

    def forward(self, ids):
        return self.fc(self.table(ids))


# ---- embedding


@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_of_eight_and_of_four_bits_alone_in_a_network(bits):
    model = nn.Sequential(nn.Embedding(10, 12)).eval()
    wrapped = calibrated(model, IDS, preset=weights(bits))
    codes = wrapped.convert().module.get_submodule("0").weight
    assert codes.dtype == torch.int8
    assert -(2 ** (bits - 1)) <= int(codes.min()) < int(codes.max()) < 2 ** (bits - 1)
    assert relative_error(wrapped(IDS), model(IDS)) < (0.01 if bits == 8 else 0.12)
    assert_exact(wrapped, IDS)


def test_none_leaves_a_table_in_float_and_a_static_preset_quantizes_it():
    for preset, quantized in ((None, False), ("WC8_AT8", True)):
        mapping = QConfigMapping().set_object_type(nn.Embedding, preset)
        prepared = prepare_fx(Linear(nn.Embedding).eval(), mapping)
        prepared(IDS)
        assert isinstance(prepared.module.table, StoredWeights) is quantized
        converted = edgeq.convert_fx(prepared).module.table
        assert converted.weight.dtype == (torch.int8 if quantized else torch.float32)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_a_table_and_a_linear_layer_train_together(kind):
    model = Linear(kind)
    prepared = prepare_qat_fx(model.train())
    optimizer = torch.optim.Adam(prepared.parameters(), 0.01)
    target, losses = torch.randn(3, 3, generator=torch.Generator().manual_seed(2)), []
    for _ in range(60):
        output = prepared(IDS)
        loss = (output.mean(1) if output.dim() == 3 else output).sub(target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    prepared.eval()
    assert_exact(prepared, IDS)


def test_a_conversion_may_leave_a_table_in_float_after_all():
    prepared = prepare_fx(Linear(nn.Embedding).eval(), QConfigMapping(), bias_calibration_factor=0.0)
    prepared(IDS)
    converted = edgeq.convert_fx(prepared, QConfigMapping().set_object_type(nn.Embedding, None))
    assert converted.module.table.weight.dtype == torch.float32
    assert torch.equal(converted.module.table(IDS), prepared.module.table.weight[IDS])


# ---- recurrent layers


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_alone_in_a_network(kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(4, 6)).eval()
    wrapped = calibrated(model, X)
    assert relative_error(wrapped(X), model(X)) < 0.02
    assert_exact(wrapped, X)


def test_a_sentence_from_words_to_classes():
    model = Sentence().eval()
    wrapped = calibrated(model, IDS)
    (found,) = assert_exact(wrapped, IDS)
    assert relative_error(found, model(IDS)) < 0.03
    assert torch.equal(found.argmax(1), model(IDS).argmax(1))


def test_a_whole_state_goes_into_another_layer_and_out_of_the_network():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.LSTM(4, 6), nn.LSTM(6, 6)

        def forward(self, x):
            outputs, state = self.first(x)
            result = self.second(outputs, state)
            return result, state

    model = Twice().eval()
    wrapped = calibrated(model, X)
    structure = torch.utils._pytree.tree_structure(model(X))
    assert torch.utils._pytree.tree_structure(wrapped(X)) == structure
    assert torch.utils._pytree.tree_structure(wrapped.convert()(X)) == structure
    assert len(assert_exact(wrapped, X)) == 5
    assert relative_error(wrapped(X), model(X)) < 0.05


def test_items_of_a_tuple_are_found_through_names_that_hold_it():
    class Rerouted(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.fc = nn.LSTM(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            result = self.rnn(x)
            state = result[1]
            hidden = state[0]
            return self.fc(result[0]), self.fc(hidden), state[1]

    model = Rerouted().eval()
    wrapped = calibrated(model, X)
    names = {quantizer.name for quantizer in wrapped.module.quantizers()}
    assert {"rnn_outputs", "rnn_hidden", "rnn_cell"} <= names
    assert_exact(wrapped, X)


# ---- weights only


@pytest.mark.parametrize("bits", [8, 4])
def test_only_the_weights_of_a_recurrent_layer_become_integers(bits):
    model = Sentence().eval()
    mapping = QConfigMapping().set_object_type(nn.LSTM, only_weights(bits)).set_object_type(nn.Embedding, None)
    prepared = calibrated(model, IDS, preset=mapping.qconfig())
    rnn = prepared.module.rnn
    assert isinstance(rnn, StoredWeights)
    assert rnn.quantizer_of("weight_ih_l0").spec.bits == bits
    words = prepared.module.get_submodule("table")(IDS)
    assert prepared.module.quantizer_of("table") is None
    assert "leaves integers to weights only" in prepared.module.reasons["rnn"]
    converted = prepared.convert().module.rnn
    assert converted.weight_hh_l0.dtype == torch.int8
    for found, expected in zip(leaves(converted(words)), leaves(rnn(words)), strict=True):
        assert torch.equal(found, expected)
    assert_exact(prepared, IDS)


def test_a_mapping_with_weights_only_is_written_and_read():
    mapping = QConfigMapping().set_object_type(nn.GRU, only_weights(4))
    again = QConfigMapping.from_dict(mapping.to_dict())
    assert again == mapping
    (rule,) = again.qconfig().rules
    assert (rule.weight_only, rule.weight.bits) == (True, 4)


def test_a_layer_that_computes_in_integers_has_no_weights_alone():
    with pytest.raises(SpecError, match=r"'Linear' leaves integers to weights only.*'fc' \(linear\)"):
        prepare_fx(Sentence(), QConfigMapping().set_object_type(nn.Linear, only_weights()))
    with pytest.raises(SpecError, match="has weight_only: it is for single layers"):
        edgeq.PTCFxModule(Sentence(), only_weights())
    with pytest.raises(SpecError, match="leaves no weights as integers either"):
        edgeq.spec.Rule(type="LSTM", quantize=False, weight_only=True)


# ---- cells


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("preset", ["WC8_AT8", "WC4_AT8", "WT8SYMP2_AT8SYMP2"])
def test_a_cell_alone_in_a_network(kind, preset):
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.cell = kind(4, 6)

        def forward(self, x):
            return self.cell(x)

    model = One().eval()
    wrapped = calibrated(model, X[0], preset=preset)
    assert len(wrapped.module.quantized_layers()) == 2
    assert relative_error(wrapped(X[0]), model(X[0])) < (0.2 if preset == "WC4_AT8" else 0.06)
    assert_exact(wrapped, X[0])
