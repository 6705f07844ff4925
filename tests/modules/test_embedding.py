"""Tables of integers: what a look-up gives, where their ranges come from, and what training does to them."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from edgeq import arithmetic
from edgeq.errors import CalibrationError, ExportError
from edgeq.modules.embedding import Bags, IntegerEmbedding, QuantizedEmbedding, TableQuantizer
from tests.graph.parity import assert_exact, calibrated, group_of

PER_ROW, PER_TABLE = "WC8_AT8", "WT8SYMP2_AT8SYMP2"
IDS = torch.tensor([[1, 5, 5, 0], [7, 2, 9, 3]])


class Words(nn.Module):
    """A table and a linear layer; the rows differ in size."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.fc = nn.Embedding(10, 6, **options), nn.Linear(6, 4)
        with torch.no_grad():
            self.table.weight.mul_(torch.arange(10).unsqueeze(1) / 4)

    def forward(self, ids):
        return self.fc(self.table(ids))


class Bagged(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.bag, self.fc = nn.EmbeddingBag(10, 6, **options), nn.Linear(6, 4)

    def forward(self, ids, offsets=None, weights=None):
        return self.fc(self.bag(ids, offsets, weights))


def table_of(wrapped) -> torch.Tensor:
    """The table as the prepared network keeps it, rounded by the definition."""
    table, weight = wrapped.module.table, wrapped.module.table.weight.detach()
    if isinstance(table, QuantizedEmbedding):
        scale, axis = table.quantizer_of("weight").scale, 0
    else:
        scale, axis = wrapped.module.quantization.tensors.table.scale, None
    return arithmetic.fake_quantize(weight, scale, torch.zeros_like(scale), -128, 127, axis)


def test_with_one_scale_a_look_up_moves_the_codes_of_the_table():
    wrapped = calibrated(Words().eval(), IDS, preset=PER_TABLE)
    quantizer = wrapped.module.quantization.tensors.table
    assert isinstance(quantizer, TableQuantizer)
    assert group_of(wrapped, "table") == "table"
    assert torch.equal(quantizer(wrapped.module.table(IDS)), table_of(wrapped)[IDS])
    assert_exact(wrapped, IDS)
    converted = wrapped.convert().module
    constant = converted.quantization.constants.table
    assert constant.dtype == torch.int8
    assert torch.equal(constant.float() * quantizer.scale, table_of(wrapped))
    assert not any(value.shape == (10, 6) for value in converted.state_dict().values() if value.is_floating_point())


def test_with_a_scale_for_each_row_no_row_coarsens_another():
    wrapped = calibrated(Words().eval(), IDS, preset=PER_ROW)
    table = wrapped.module.table
    assert table.quantizer_of("weight").scale.shape == (10,)
    assert torch.equal(table(IDS), table_of(wrapped)[IDS])
    errors = (table_of(wrapped) - table.weight).abs().amax(1)
    assert (errors <= table.quantizer_of("weight").scale / 2 + 1e-7).all()
    assert group_of(wrapped, "table") == "table"  # what was looked up has a range of its own
    assert wrapped.module.quantization.tensors.table.observer is not None
    assert_exact(wrapped, IDS)
    converted = wrapped.convert().module.table
    assert isinstance(converted, IntegerEmbedding)
    assert converted.weight.dtype == torch.int8
    assert torch.equal(converted.weight * converted.weight_scale, table_of(wrapped))


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_four_bits_use_sixteen_codes(granularity):
    preset = {"inherits": PER_ROW, "weight": {"bits": 4, "granularity": granularity}}
    wrapped = calibrated(Words().eval(), IDS, preset=preset)
    assert_exact(wrapped, IDS)
    converted = wrapped.convert().module
    codes = converted.table.weight if granularity == "channel" else converted.quantization.constants.table
    assert (int(codes.min()), int(codes.max())) in ((-8, 7), (-7, 7), (-8, 6))
    assert codes.dtype == torch.int8


def test_codes_that_are_moved_keep_to_what_the_backend_says_of_activations():
    preset = {"inherits": PER_TABLE, "weight": {"scale": "free"}, "recovery": []}
    wrapped = edgeq.PTCFxModule(Words().eval(), preset, backend="x86").calibrate([IDS])
    quantizer = wrapped.module.quantization.tensors.table
    assert (int(quantizer.quant_min), int(quantizer.quant_max)) == (-64, 63)
    assert quantizer.spec.scale.value == "power_of_two"
    assert wrapped.module.quantized_layers()[0].weight_quantizer.spec.scale.value == "free"
    assert_exact(wrapped, IDS)


@pytest.mark.parametrize("preset", [PER_ROW, PER_TABLE])
def test_the_range_of_a_table_is_there_before_any_calibration(preset):
    model = Words()
    wrapped = edgeq.PTCFxModule(model, preset)
    module = wrapped.module
    scale = module.table.quantizer_of("weight").scale if preset == PER_ROW else module.quantization.tensors.table.scale
    before = scale.clone()
    wrapped.calibrate([IDS])
    assert torch.equal(scale, before)
    rows = model.table.weight.abs().amax(1)
    assert (scale * 128 >= (rows if preset == PER_ROW else rows.amax())).all()


@pytest.mark.parametrize("preset", [PER_ROW, PER_TABLE])
def test_training_follows_the_table_and_reaches_only_rows_that_were_looked_up(preset):
    model = Words(padding_idx=3)
    wrapped = edgeq.QATFxModule(model, preset, total_epochs=4).train()
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
    wrapped(IDS).square().sum().backward()
    reached = model.table.weight.grad.abs().sum(1) > 0
    assert reached.tolist() == [index in (0, 1, 2, 5, 7, 9) for index in range(10)]
    optimizer.step()
    with torch.no_grad():
        model.table.weight.mul_(3)
    wrapped(IDS)
    module = wrapped.module
    scale = module.table.quantizer_of("weight").scale if preset == PER_ROW else module.quantization.tensors.table.scale
    assert (scale.max() * 128 >= model.table.weight.detach().abs().max()).item()
    assert_exact(wrapped.eval(), IDS)


def test_the_gradient_of_a_table_is_that_of_the_rows_straight_through():
    model, reference = Words(), Words()
    wrapped = edgeq.QATFxModule(model, PER_ROW, total_epochs=4).train()
    seen = []
    wrapped.module.table.register_forward_hook(lambda *args: seen.append(args[2]) or args[2].retain_grad())
    wrapped(IDS).square().sum().backward()
    expected = torch.zeros(10, 6).index_put((IDS.flatten(),), seen[0].grad.flatten(0, 1), accumulate=True)
    assert torch.allclose(model.table.weight.grad, expected)
    reference(IDS).square().sum().backward()
    found, plain = model.table.weight.grad.flatten(), reference.table.weight.grad.flatten()
    assert F.cosine_similarity(found, plain, 0) > 0.99


def test_gradients_of_a_sparse_table_stay_sparse():
    model = Words(sparse=True)
    wrapped = edgeq.QATFxModule(model, PER_ROW, total_epochs=4).train()
    wrapped(IDS).sum().backward()
    assert model.table.weight.grad.is_sparse


def test_a_table_that_is_rescaled_at_each_look_up_stays_float_and_says_why():
    wrapped = calibrated(Words(max_norm=1.0).eval(), IDS)
    assert wrapped.module.reasons["table"] == "stays float: max_norm scales rows of the table at each look-up"
    assert type(wrapped.module.table) is nn.Embedding
    assert_exact(wrapped, IDS)


def test_a_table_with_nan_is_refused_by_name():
    model = Words()
    with torch.no_grad():
        model.table.weight[0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="The table that 'table' looks up rows in holds NaN"):
        edgeq.PTCFxModule(model, PER_TABLE).calibrate([IDS])


@pytest.mark.parametrize("preset", [PER_ROW, PER_TABLE])
def test_keys_parameters_copies_and_pickles_are_as_of_any_module(preset):
    model = Words().eval()
    wrapped = calibrated(model, IDS, preset=preset)
    assert {*model.state_dict()} <= {*wrapped.module.state_dict()}
    assert wrapped.module.table.weight is model.table.weight
    assert isinstance(wrapped.module.table, nn.Embedding)
    expected = wrapped(IDS)
    for twin in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert torch.equal(twin(IDS), expected)
        assert twin.module.table.weight is not model.table.weight
        with torch.no_grad():
            twin.module.table.weight.mul_(2)
        twin.calibrate([IDS])
        assert not torch.equal(twin(IDS), expected)
    other = edgeq.PTCFxModule(Words().eval(), preset)
    other.load_weights(wrapped.module.state_dict(), strict=True)
    assert torch.equal(other.eval()(IDS), expected)
    converted = wrapped.convert()
    assert torch.equal(pickle.loads(pickle.dumps(converted))(IDS), expected)


BAGS = [(mode, padding) for mode, padding in itertools.product(("sum", "mean", "max"), (None, 5))]


@pytest.mark.parametrize(("mode", "padding"), BAGS)
@pytest.mark.parametrize("preset", [PER_ROW, PER_TABLE])
def test_a_bag_is_that_of_the_rounded_table(mode, padding, preset):
    model = Bagged(mode=mode, padding_idx=padding).eval()
    flat, offsets = torch.cat([IDS.flatten(), torch.tensor([5, 5])]), torch.tensor([0, 3, 3, 8])
    for inputs in ((IDS,), (flat, offsets)):
        wrapped = calibrated(model, *inputs, preset=preset, example_inputs=inputs)
        bag = wrapped.module.bag
        table = bag.quantizer_of("weight")(bag.weight.detach())
        expected = F.embedding_bag(inputs[0], table, *inputs[1:], mode=mode, padding_idx=padding)
        assert torch.allclose(bag(*inputs), expected, atol=1e-6)
        assert wrapped.module.quantizer_of("quantization_tensors_bag").name == "bag"
        assert_exact(wrapped, *inputs)


def test_a_bag_without_a_row_that_counts_is_zero():
    table = torch.randn(10, 6) - 5
    for mode in ("sum", "mean", "max"):
        bag = Bags(mode, padding_idx=4)(lambda ids: table[ids], torch.full((1, 3), 4), None, None)
        assert torch.equal(bag, torch.zeros(1, 6))


def test_samples_of_a_bag_have_weights():
    model, weights = Bagged(mode="sum").eval(), torch.rand(2, 4, generator=torch.Generator().manual_seed(1))
    wrapped = calibrated(model, IDS, None, weights, example_inputs=(IDS, None, weights))
    (found,) = assert_exact(wrapped, IDS, None, weights)
    assert (found - model(IDS, None, weights)).norm() < 0.02 * found.norm()


def test_a_bag_whose_lengths_are_data_is_not_exported(tmp_path):
    inputs = IDS.flatten(), torch.tensor([0, 3])
    wrapped = calibrated(Bagged(mode="sum").eval(), *inputs, example_inputs=inputs)
    for opset in (17, 18):
        with pytest.raises(ExportError, match=r"offsets cannot be exported.*filled up with padding_idx"):
            wrapped.export(inputs, tmp_path / "model.onnx", opset_version=opset)
