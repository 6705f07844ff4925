"""Recurrent layers with quantized weights: the same kernel as PyTorch's, over what the codes stand for."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import edgeq
from edgeq.errors import SpecError, TraceError
from edgeq.modules.recurrent import IntegerRecurrent, QuantizedLSTM, Recurrence
from tests.graph.parity import assert_exact, calibrated, group_of, images, leaves, relative_error

KINDS = [nn.LSTM, nn.GRU, nn.RNN]
OPTIONS = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]
CASES = [*itertools.product(KINDS, OPTIONS), (nn.LSTM, {"proj_size": 3}), (nn.RNN, {"nonlinearity": "relu"})]
X = images(4, 3, 6)


class Net(nn.Module):
    """A recurrent layer, and a linear one on what it gives at each step."""

    def __init__(self, kind=nn.LSTM, **options):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(6, 5, **options)
        self.fc = nn.Linear((options.get("proj_size") or 5) * (1 + options.get("bidirectional", False)), 2)

    def forward(self, x):
        outputs, state = self.rnn(x)
        return self.fc(outputs), state


def state_for(layer, x):
    """A first state for a layer."""
    batch = x.shape[0 if layer.batch_first else 1]
    count = layer.num_layers * (1 + layer.bidirectional)
    h, c = images(count, batch, layer.proj_size or 5, seed=1), images(count, batch, 5, seed=2)
    return (h, c) if isinstance(layer, nn.LSTM) else h


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_the_recurrence_is_pytorchs(kind, options):
    layer = Net(kind, **options).rnn.eval()
    recurrence, weights = Recurrence.of_module(layer), [getattr(layer, name) for name in layer._flat_weights_names]
    alone = torch.utils._pytree.tree_map(lambda part: part[:, 0], state_for(layer, X))
    with torch.no_grad():
        for x, state in ((X, None), (X, state_for(layer, X)), (X[:, 0], None), (X[:, 0], alone)):
            found, expected = leaves(recurrence(x, state, weights, False)), leaves(layer(x, state))
            assert len(found) == len(expected) == (3 if kind is nn.LSTM else 2)
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_a_quantized_layer_is_the_float_one_over_rounded_weights(kind, options):
    model = Net(kind, **options).eval()
    wrapped = calibrated(model, X)
    layer, reference = wrapped.module.rnn, copy.deepcopy(model.rnn).requires_grad_(False)  # which kernels ask for
    with torch.no_grad():
        for name in layer.stored_names():
            scale = layer.quantizer_of(name).scale.unsqueeze(1)
            weight = getattr(model.rnn, name)
            getattr(reference, name).copy_(torch.round(weight / scale).clamp(-128, 127) * scale)
        found, expected = leaves(layer(X)), leaves(reference(X))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert relative_error(wrapped(X), model(X)) < 0.03
    assert_exact(wrapped, X)


def test_input_outputs_and_states_have_ranges_and_the_weights_a_spec():
    wrapped = calibrated(Net().eval(), X)
    assert [quantizer.name for quantizer in wrapped.module.quantizers()] == [
        *("x", "rnn_outputs", "rnn_hidden", "rnn_cell", "fc")
    ]
    assert group_of(wrapped, "hidden") == "rnn_hidden"
    assert wrapped.module.quantizer_of("rnn") is None
    note = "the loop over time inside of the call computes in float, with weights from integers"
    assert wrapped.module.reasons["rnn"] == note
    line = next(line for line in wrapped.explain().splitlines() if line.startswith("rnn "))
    assert line.split("  ")[0] == "rnn"
    assert "8 bits symmetric channel free" in line
    assert line.endswith(note)


def test_the_converted_layer_holds_bytes_for_weights():
    model = Net().eval()
    converted = calibrated(model, X).convert().module.rnn
    assert isinstance(converted, IntegerRecurrent)
    sizes = {name: (value.dtype, tuple(value.shape)) for name, value in converted.state_dict().items()}
    assert sizes == {
        "weight_ih_l0": (torch.int8, (20, 6)),
        "weight_ih_l0_scale": (torch.float32, (20,)),
        "weight_hh_l0": (torch.int8, (20, 5)),
        "weight_hh_l0_scale": (torch.float32, (20,)),
        "bias_ih_l0": (torch.float32, (20,)),
        "bias_hh_l0": (torch.float32, (20,)),
    }
    error = (converted.number("weight_ih_l0") - model.rnn.weight_ih_l0).abs().amax(1)
    assert (error <= converted.weight_ih_l0_scale / 2 + 1e-7).all()


def test_training_reaches_weights_and_biases_and_scales_follow():
    model = Net()
    wrapped = edgeq.QATFxModule(model, total_epochs=4).train()
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.5)
    scales = [wrapped.module.rnn.quantizer_of(name).scale for name in wrapped.module.rnn.stored_names()]
    before = [scale.clone() for scale in scales]
    wrapped(X)[0].square().sum().backward()
    plain = Net()
    plain(X)[0].square().sum().backward()
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.cosine_similarity(found.grad.flatten(), expected.grad.flatten(), 0) > 0.98
    optimizer.step()
    wrapped(X)
    assert all(not torch.equal(now, then) for now, then in zip(scales, before, strict=True))
    assert_exact(wrapped.eval(), X)


def test_evaluation_with_gradients_is_exact_and_has_them():
    model = Net().eval()
    wrapped = calibrated(model, X)
    with torch.no_grad():
        expected = leaves(wrapped(X))
    found = leaves(wrapped(X))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    found[0].sum().backward()
    assert model.rnn.weight_hh_l0.grad.abs().sum() > 0


def test_dropout_between_layers_is_for_training_only():
    model = Net(num_layers=2, dropout=0.9)
    wrapped = edgeq.QATFxModule(model, total_epochs=4).train()
    assert not torch.equal(wrapped(X)[0], wrapped(X)[0])
    wrapped.eval()
    assert torch.equal(wrapped(X)[0], wrapped(X)[0])
    calibration = edgeq.PTCFxModule(model).train()
    assert torch.equal(calibration(X)[0], calibration(X)[0])


def test_keys_parameters_copies_and_pickles_are_as_of_any_module():
    model = Net(num_layers=2).eval()
    wrapped = calibrated(model, X)
    assert {*model.state_dict()} <= {*wrapped.module.state_dict()}
    assert isinstance(wrapped.module.rnn, QuantizedLSTM)
    assert isinstance(wrapped.module.rnn, nn.LSTM)
    own = dict(wrapped.module.named_parameters())
    assert all(own[name] is parameter for name, parameter in model.named_parameters())
    expected = wrapped(X)[0]
    for twin in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert torch.equal(twin(X)[0], expected)
        with torch.no_grad():
            twin.module.rnn.weight_ih_l1.mul_(2)
        assert not torch.equal(twin(X)[0], expected)
    assert torch.equal(wrapped(X)[0], expected)
    other = edgeq.PTCFxModule(Net(num_layers=2).eval())
    other.load_weights(wrapped.module.state_dict(), strict=True)
    assert torch.equal(other.eval()(X)[0], expected)


def test_a_packed_sequence_is_refused_with_the_way_out():
    packed = pack_padded_sequence(X, [4, 3, 2])
    wrapped = calibrated(Net().eval(), X)
    with pytest.raises(SpecError, match=r"QuantizedLSTM was given a PackedSequence.*padded tensor.*quantize = false"):
        wrapped.module.rnn(packed)

    class Packs(Net):
        def forward(self, x, lengths):
            return self.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))[1][0]

    with pytest.raises(TraceError, match="pack_padded_sequence"):
        edgeq.prepare_fx(Packs(), example_inputs=(X, torch.tensor([4, 3, 2])))
