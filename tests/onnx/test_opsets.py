"""Opsets 13 to 21 through both exporters, and batches of other sizes than the example's."""

import numpy as np
import onnx
import pytest
import torch

import edgeq
from edgeq.errors import ExportError
from tests.networks import NETWORKS, batches, network
from tests.onnx.ort import calibrated, converted, exported, image, numbers, producers, readers, run, session, written

IR = {13: 8, 14: 8, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}


@pytest.mark.parametrize("opset", range(13, 22))
def test_every_opset_gives_the_same_numbers_and_says_which_it_is(opset):
    model = exported("residual", opset_version=opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == IR[opset]
    onnx.checker.check_model(model, full_check=True)
    oldest, newest = numbers(exported("residual")), numbers(model)
    weights = [name for name in oldest if not name.startswith("mean/")]  # the axes became an input at 18
    assert len(weights) == 35
    assert all(np.array_equal(oldest[name], newest[name]) for name in weights)
    for fused in (False, True):
        found = run(model, image(), fused=fused)
        assert np.array_equal(found["output"], converted("residual")(image()).numpy())


@pytest.mark.parametrize(
    ("opset", "name"),
    [(13, "residual"), (13, "separable"), (13, "attention"), (21, "attention")]
    + [pytest.param(21, name, marks=pytest.mark.sweep) for name in ("residual", "separable")],
)
def test_the_oldest_and_the_newest_opset_take_every_network_in_integers(name, opset, tmp_path):
    result = converted(name).export(image(), tmp_path / "model.onnx", opset_version=opset, format="integer")
    assert result.passed, str(result)
    assert [parity.unequal for parity in result.parity] == [0, 0]
    assert result.opset == opset


@pytest.mark.parametrize("opset", [17, 21])
def test_codes_of_four_bits_are_the_same_int8_numbers_whatever_the_opset(opset):
    model = exported("residual", "WC4_AT8", opset_version=opset)
    for path in ("conv1", "conv2", "fc"):
        weight = numbers(model)[f"{path}.weight"]
        assert weight.dtype == np.int8
        assert (weight.min(), weight.max()) in {(-8, 7), (-7, 7), (-8, 6)}
        assert np.array_equal(weight, converted("residual", "WC4_AT8").module.get_submodule(path).weight.numpy())


@pytest.mark.parametrize("opset", [12, 22, 0, -1, True, 17.0, "17"])
def test_an_opset_out_of_range_is_an_error_that_says_the_range(opset, tmp_path):
    with pytest.raises(ExportError, match=rf"opset_version is {opset!r}; edgeq writes 13 to 21"):
        converted("residual").export(image(), tmp_path / "model.onnx", opset_version=opset)
    assert not list(tmp_path.iterdir())


def test_an_opset_that_the_backend_does_not_read_is_an_error_that_lists_those_it_does(tmp_path):
    wrapped = edgeq.PTCFxModule(network("residual"), "WC8_AT8", backend="tidl").calibrate(batches())
    with pytest.raises(ExportError, match=r"'tidl' reads the opsets 13, 14, 15, 16, 17, 18, 19; opset_version is 21"):
        wrapped.export(image(), tmp_path / "model.onnx", opset_version=21)
    assert wrapped.export(image(), tmp_path / "model.onnx").opset == 17


def test_codes_that_the_file_cannot_hold_are_refused_before_anything_is_calibrated():
    with pytest.raises(edgeq.SpecError, match=r"activation\.bits is 16; allowed: .*8"):
        edgeq.PTCFxModule(network("residual"), {"inherits": "WC8_AT8", "activation": {"bits": 16}})


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_dynamic_batch_takes_any_size(name, opset):
    model = exported(name, opset_version=opset, dynamic_batch=True)
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    made = session(model, fused=True)
    for size in (1, 3, 8):
        x = image(size, 20)
        assert np.array_equal(made.run(None, {"x": x.numpy()})[0], converted(name)(x).numpy())


def test_a_static_batch_is_the_examples():
    model = exported("residual")
    sizes = [value.type.tensor_type.shape.dim[0].dim_value for value in (model.graph.input[0], model.graph.output[0])]
    assert sizes == [4, 4]
    with pytest.raises(Exception, match="invalid dimensions for input: x"):
        session(model, fused=True).run(None, {"x": image(2).numpy()})


class FixedBatch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)
        self.register_buffer("table", torch.ones(4, 4, 16, 16))

    def forward(self, x):
        return self.conv(x) + self.table


def test_a_model_of_one_batch_size_cannot_be_exported_with_another(tmp_path):
    wrapped = edgeq.PTCFxModule(FixedBatch().eval()).calibrate([image()])
    with pytest.raises(ExportError, match=r"cannot take a batch of another size.*dynamic_batch=True"):
        wrapped.export(image(), tmp_path / "model.onnx", dynamic_batch=True)
    assert wrapped.export(image(), tmp_path / "model.onnx").passed


@pytest.mark.parametrize(("opset", "kind"), [(17, "qdq"), (17, "integer"), (18, "qdq")])
def test_before_and_after_conversion_and_a_second_time_the_same_bytes_are_written(opset, kind):
    first = exported("residual", kind=kind, opset_version=opset)
    again = written(calibrated("residual"), image(), opset_version=opset, format=kind, verify=False)
    assert first.SerializeToString() == again.SerializeToString()


def test_both_exporters_write_the_same_graph():
    one, other = (exported("residual", opset_version=opset) for opset in (17, 18))
    same = {"ReduceMean": "GlobalAveragePool"}  # the newer exporter writes a pool to one position as a mean
    kinds = [sorted(same.get(node.op_type, node.op_type) for node in model.graph.node) for model in (one, other)]
    assert kinds[0] == kinds[1]
    for model in (one, other):
        assert producers(model)["output"].name == "fc/DequantizeLinear_3"
        assert [node.op_type for node in readers(model, "conv1/codes")] == ["DequantizeLinear"]
