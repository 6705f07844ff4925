"""Backends that do not round half to even: an integer file does as they do, a QDQ file cannot and says so."""

import numpy as np
import pytest

import edgeq
from tests.networks import NETWORKS, batches, network
from tests.onnx.ort import codes_of, differences, image, run, written


def calibrated(name, preset, rounding):
    backend = {"name": "own", "rounding": rounding}
    return edgeq.PTCFxModule(network(name), preset, backend).calibrate(batches())


@pytest.mark.parametrize("rounding", ["half_up", "half_away", "floor"])
@pytest.mark.parametrize("preset", ["WT8SYMP2_AT8SYMP2", "WC8P2_AT8P2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_integer_file_rounds_as_the_backend_does(name, preset, rounding):
    module, x = calibrated(name, preset, rounding).convert(), image()
    theirs = run(written(module, x, format="integer"), x, fused=False)
    found = differences(codes_of(module, x), theirs)
    assert len(found) > 5
    assert sum(np.count_nonzero(steps) for steps in found.values()) == 0


def test_only_operators_that_say_how_they_round_are_left(tmp_path):
    result = calibrated("residual", "WT8SYMP2_AT8SYMP2", "half_up").export(
        image(), tmp_path / "model.onnx", format="integer"
    )
    assert result.passed
    assert not {"QuantizeLinear", "QLinearConv", "QLinearMatMul"} & set(result.nodes)
    assert (result.nodes["ConvInteger"], result.nodes["MatMulInteger"]) == (2, 1)


def test_a_qdq_file_differs_at_ties_by_one_step_and_names_the_rounding(tmp_path):
    wrapped = calibrated("residual", "WT8SYMP2_AT8SYMP2", "half_up")
    result = wrapped.export(image(16), tmp_path / "model.onnx")
    for parity in result.parity:
        assert parity.unequal > 0
        assert max(tensor.local_greatest for tensor in parity.tensors) == 1
        assert parity.cause() == "the backend rounds otherwise than ONNX"
        assert "the backend rounds half_up, these operators of ONNX half_even" in parity.notes
    assert result.passed
