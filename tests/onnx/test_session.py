"""Sessions that do not saturate, on hosts whose kernels for signed weights do, and on the others."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.errors import ExportError
from edgeq.onnx import session
from edgeq.onnx.session import Runtime, saturates, with_unsigned_weights
from edgeq.onnx.verify import compare
from tests.onnx.ort import changed, converted, exported, image, numbers


def product(weight_zero: int = 0) -> onnx.ModelProto:
    """255 * 127, 64 times: pairs of products do not fit 16 bits."""
    weight, zero = np.full((64, 8), 127, np.int8), np.int8(weight_zero)
    node = helper.make_node("MatMulInteger", ["x", "w", "zero", "w_zero"], ["y"])
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, (2, 64))],
        [helper.make_tensor_value_info("y", TensorProto.INT32, (2, 8))],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(zero, "w_zero"),
            numpy_helper.from_array(np.uint8(0), "zero"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


X = np.full((2, 64), 255, np.uint8)


@pytest.fixture(params=[False, True], ids=["this host", "a host that saturates"])
def host(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(session, "saturates", lambda: True)
    return request.param or saturates()


@pytest.mark.parametrize("fused", [False, True])
def test_sums_that_16_bits_cannot_hold_are_right_on_every_host(fused, host):
    runtime = Runtime(product(), fused)
    assert runtime.avoids_saturation is host
    assert np.array_equal(runtime.run([X])["y"], np.full((2, 8), 64 * 255 * 127, np.int32))


def test_whoever_asks_for_the_hosts_own_kernels_gets_them(monkeypatch):
    monkeypatch.setattr(session, "saturates", lambda: True)
    assert not Runtime(product(), fused=True, exact=False).avoids_saturation
    assert not Runtime(product(), fused=False, exact=False).avoids_saturation


def test_a_file_without_integer_operators_needs_no_detour_where_nothing_is_fused(monkeypatch):
    monkeypatch.setattr(session, "saturates", lambda: True)
    assert not Runtime(exported("residual"), fused=False).avoids_saturation
    assert Runtime(exported("residual"), fused=True).avoids_saturation
    assert Runtime(exported("residual", kind="integer"), fused=False).avoids_saturation


def test_unsigned_weights_are_the_same_numbers_128_greater_like_their_zero_points():
    model = exported("residual", kind="integer")
    before, after = numbers(model), numbers(with_unsigned_weights(model))
    moved = {name for name in before if before[name].dtype == np.int8}
    assert moved == {
        *("conv1.weight", "conv1.weight_zero_point", "conv2.weight", "conv2.weight_zero_point"),
        *("fc.weight_integer", "fc.weight_integer_zero_point"),
    }
    for name, values in before.items():
        if name in moved:
            assert after[name].dtype == np.uint8
            assert np.array_equal(after[name].astype(int), values.astype(int) + 128)
        else:
            assert np.array_equal(after[name], values)


@pytest.mark.parametrize("name", ["residual", "attention"])
@pytest.mark.parametrize("kind", ["qdq", "integer"])
def test_the_detour_changes_no_integer_and_is_noted(name, kind, monkeypatch):
    monkeypatch.setattr(session, "saturates", lambda: True)
    model = exported(name, kind=kind)
    before = model.SerializeToString()
    unfused, fused = compare(converted(name).module, model, (image(),), batch=None)
    assert (unfused.unequal, fused.unequal) == (0, 0)
    assert [bool(parity.notes) for parity in (unfused, fused)] == [kind == "integer", True]
    assert "no VNNI" in fused.notes[0]
    assert "note: this host's kernels" in str(fused)
    assert model.SerializeToString() == before


def test_all_outputs_come_by_name_in_the_order_of_the_file():
    model = changed(exported("residual"))
    model.graph.output.append(helper.make_empty_tensor_value_info("conv1/codes"))
    found = Runtime(model, fused=True).run([image().numpy()])
    assert list(found) == ["output", "conv1/codes"]
    assert np.array_equal(found["output"], converted("residual")(image()).numpy())


def test_a_file_that_the_runtime_does_not_take_is_an_error_with_the_ways_out():
    model = product()
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match=r"(?s)does not load the file: .*NoSuchOperator.*verify=False") as raised:
        Runtime(model, fused=False)
    assert isinstance(raised.value.__cause__, Exception)
    assert onnxruntime.__name__ in type(raised.value.__cause__).__module__
