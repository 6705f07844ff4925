"""A comparison that cannot fail proves nothing: files are spoilt in one place each, and the verdict must say where."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgeq.errors import ExportError
from edgeq.onnx.tolerance import Tolerance
from edgeq.onnx.verify import TensorParity
from tests.onnx.ort import calibrated_on, changed, converted, exported, image, numbers, producers, readers

PRESETS = ("DEFAULT", "WT8SYMP2_AT8SYMP2")


def spoil(model, name, change):
    """A copy of the file in which `change` was applied to one initializer."""
    copy = changed(model)
    tensor = next(tensor for tensor in copy.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(values), values.dtype), name))
    return copy


def verdicts(model, tmp_path, preset="DEFAULT", name="residual"):
    onnx.save(model, tmp_path / "spoilt.onnx")
    return converted(name, preset).verify(tmp_path / "spoilt.onnx", image(), batch=None)


def one_weight(values):
    values.flat[40] += 1 if values.flat[40] < 0 else -1
    return values


def first_bias(values):
    values[0] += 100_000
    return values


SPOILS = [
    ("conv1.weight", one_weight, "conv1"),
    ("conv2.weight", one_weight, "conv2"),
    ("fc.weight", lambda values: values + np.int8(1), "fc"),
    ("conv2.bias", first_bias, "conv2"),
    ("conv1_scale", lambda scale: scale * np.float32(1.05), "conv1"),
    ("x_scale", lambda scale: scale * np.float32(2), "x"),
    ("x_zero_point", lambda zero: zero + 1, "x"),
    ("add_zero_point", lambda zero: zero + 1, "add"),
    ("conv2.weight_scale", lambda scale: scale * np.float32(1.1), "conv2"),
]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("tensor", "change", "place"), SPOILS)
def test_a_spoilt_number_fails_the_verdict_at_the_tensor_where_it_stands(tensor, change, place, preset, tmp_path):
    model = exported("residual", preset)
    for parity in verdicts(spoil(model, tensor, change), tmp_path, preset):
        assert not parity.passed
        assert parity.first_divergence.name == place
        assert parity.unequal >= parity.first_divergence.local_unequal > 0
        assert f"first at {place}" in str(parity)
        assert "FAILED" in str(parity)


def test_the_file_as_it_was_exported_passes(tmp_path):
    for parity in verdicts(exported("residual"), tmp_path):
        assert parity.passed
        assert (parity.unequal, parity.error, parity.local_error, parity.exact_outputs) == (0, 0.0, 0.0, 100.0)
        assert parity.first_divergence is None
        assert parity.cause() is None


def test_a_tensor_that_only_inherits_a_difference_is_not_blamed(tmp_path):
    spoilt = spoil(exported("residual"), "conv1.weight", one_weight)
    for parity in verdicts(spoilt, tmp_path):
        tensors = {tensor.name: tensor for tensor in parity.tensors}
        assert tensors["conv2"].unequal > 0
        assert tensors["conv2"].local_unequal == 0
        assert tensors["conv2"].passed
        assert [name for name, tensor in tensors.items() if not tensor.passed] == ["conv1"]


@pytest.mark.parametrize("tensor", ["conv1", "add"])
def test_a_lost_pair_of_q_and_dq_is_an_error_that_names_it(tensor, tmp_path):
    model = changed(exported("residual"))
    quantizer = producers(model)[f"{tensor}/codes"]
    (dequantizer,) = readers(model, f"{tensor}/codes")
    for reader in readers(model, dequantizer.output[0]):
        for position, name in enumerate(reader.input):
            if name == dequantizer.output[0]:
                reader.input[position] = quantizer.input[0]
    model.graph.node.remove(quantizer)
    model.graph.node.remove(dequantizer)
    with pytest.raises(ExportError, match=f"lost 1 quantizers: {tensor}"):
        verdicts(model, tmp_path)


@pytest.mark.parametrize("factor", [1.01, 1.0003])
def test_an_output_that_is_not_what_its_integers_stand_for_fails(factor, tmp_path):
    model = changed(exported("residual"))
    last = producers(model)["output"]
    model.graph.initializer.append(
        numpy_helper.from_array(numbers(model)["fc_scale"] * np.float32(factor), "another_scale")
    )
    last.input[1] = "another_scale"
    for parity in verdicts(model, tmp_path):
        assert parity.unequal == 0
        assert parity.local_error == pytest.approx(factor - 1, rel=1e-2)
        assert not parity.passed


class TwoResults(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 4), torch.nn.Linear(6, 3)

    def forward(self, x):
        return self.first(x), torch.log_softmax(self.second(x), -1)


def test_every_output_is_compared_and_float_operations_behind_the_integers_too(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    module = calibrated_on(TwoResults(), x).convert()
    result = module.export(x, tmp_path / "model.onnx")
    assert all(parity.local_error < 1e-6 for parity in result.parity)
    assert result.passed
    model = onnx.load(tmp_path / "model.onnx")
    producers(model)["output_1"].attribute[0].i = 0  # the softmax along another axis
    onnx.save(model, tmp_path / "spoilt.onnx")
    for parity in module.verify(tmp_path / "spoilt.onnx", x, batch=None):
        assert parity.unequal == 0
        assert not parity.passed
        assert parity.local_error > 0.1


def test_many_inputs_are_taken_in_batches_and_counted_once(tmp_path):
    module, images = converted("residual"), image(10)
    module.export(image(), tmp_path / "model.onnx", dynamic_batch=True)
    whole, parts = (module.verify(tmp_path / "model.onnx", images, batch=size) for size in (None, 3))
    for one, other in zip(whole, parts, strict=True):
        assert (one.images, other.images) == (10, 10)
        assert one.elements == other.elements == 10 * (3 * 256 + 3 * 8 * 256 + 8 * 64 + 2 * 8 + 5)
        assert one.unequal == other.unequal == 0


def test_a_file_of_another_network_is_not_mistaken_for_this_one(tmp_path):
    with pytest.raises(ExportError, match=r"lost \d+ quantizers: stem\.0, expand\.0"):
        verdicts(exported("residual"), tmp_path, name="separable")


def test_the_network_is_left_as_it_was(tmp_path):
    module = converted("residual")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    verdicts(exported("residual"), tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert module.module.conv1.readers == converted("residual").module.conv1.readers


def test_a_row_that_is_computed_twice_counts_once():
    tensor = TensorParity("x", "linear", Tolerance(1, 0.0001))
    ours = np.arange(40, dtype=np.uint8).reshape(10, 4)
    ours[1:] = ours[0]  # ten tokens alike
    theirs = ours.copy()
    theirs[:, 2] += 1
    tensor.add(ours, theirs, ours)
    assert (tensor.local_unequal, tensor.repeated) == (10, 9)
    assert tensor.passed
    theirs[:, 2] += 1
    tensor.add(ours, theirs, ours)
    assert not tensor.passed  # by two steps


def test_rows_that_are_not_alike_count_each():
    tensor = TensorParity("x", "linear", Tolerance(1, 0.0001))
    ours = np.arange(40, dtype=np.uint8).reshape(10, 4)
    tensor.add(ours, ours + (np.arange(4) == 2), ours)
    assert (tensor.local_unequal, tensor.repeated) == (10, 0)
    assert not tensor.passed
