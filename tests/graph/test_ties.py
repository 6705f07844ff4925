"""A sum is the same integer whether the file's operators or a fused kernel computes it."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import edgeq
from edgeq.arithmetic import dequantize, quantize
from edgeq.graph.ties import FUSED, NUDGE, TRIES, avoid_ties
from edgeq.modules.pair import PAIRED
from edgeq.qparams import QParams
from tests.networks import batches, network


class Two(nn.Module):
    """Two convolutions, and what is made of their outputs."""

    def __init__(self, operation):
        super().__init__()
        self.left, self.right, self.operation = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), operation

    def forward(self, x):
        return self.operation(self.left(x), self.right(x))


def fused_kernel(kind, left, right, out):
    """What ONNX Runtime's fused kernel makes of every pair of codes, (256, 256)."""
    a, b = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    values = {}
    for name, params in (("a", left), ("b", right), ("y", out)):
        values[f"{name}_scale"] = params.scale.numpy()
        values[f"{name}_zero"] = params.zero_point.numpy().astype(np.uint8)
    names = ["a", "a_scale", "a_zero", "b", "b_scale", "b_zero", "y_scale", "y_zero"]
    node = helper.make_node({"add": "QLinearAdd", "mul": "QLinearMul"}[kind], names, ["y"], domain="com.microsoft")
    info = [helper.make_tensor_value_info(name, TensorProto.UINT8, [256, 256]) for name in ("a", "b", "y")]
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph([node], "pairs", info[:2], info[2:], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"a": a, "b": b})[0].astype(np.int32))


def as_written(kind, left, right, out):
    """What QuantizeLinear of the operation on dequantized numbers gives."""
    codes = torch.arange(256, dtype=torch.int32)
    a, b = dequantize(codes[:, None], *left[:2]), dequantize(codes[None], *right[:2])
    return quantize(PAIRED[kind](a, b), out.scale, out.zero_point, 0, 255)


def params(scale, zero_point):
    return QParams(torch.tensor(scale), *(torch.tensor(v, dtype=torch.int32) for v in (zero_point, 0, 255)))


@pytest.mark.parametrize("kind", FUSED)
def test_powers_of_two_with_an_odd_zero_point_differ_in_the_runtime_and_with_an_even_one_do_not(kind):
    left, right, scale = params(2.0**-5, 10), params(2.0**-6, 3), 2.0**-4 if kind == "add" else 2.0**-9
    differing = {
        zero: int((fused_kernel(kind, left, right, out) != as_written(kind, left, right, out)).sum())
        for zero in (117, 116)
        for out in [params(scale, zero)]
    }
    assert differing[117] > (10000 if kind == "add" else 1000)
    assert differing[116] == 0


@pytest.mark.parametrize("operation", [torch.add, torch.mul], ids=["add", "mul"])
@pytest.mark.parametrize("preset", ["DEFAULT", "WC8_AT8", "MSA_WC8P2_AT8P2"])
@pytest.mark.parametrize("seed", range(3))
def test_after_calibration_no_pair_of_codes_differs_in_the_runtime(preset, operation, seed):
    torch.manual_seed(seed)
    wrapped = edgeq.PTCFxModule(Two(operation).eval(), preset).calibrate(batches(2, seed))
    tensors = wrapped.module.quantization.tensors
    kind = operation.__name__
    left, right, out = (tensors[name].qparams for name in ("left", "right", kind))
    assert left.quant_max == right.quant_max == out.quant_max == 255
    assert torch.equal(fused_kernel(kind, left, right, out), as_written(kind, left, right, out))


def test_a_scale_grows_by_less_than_a_thousandth_and_powers_of_two_stay():
    for preset, greatest in (("WC8_AT8", TRIES * NUDGE), ("WC8P2_AT8P2", 0.0)):
        wrapped = edgeq.PTCFxModule(network("residual"), preset).calibrate(batches())
        target = wrapped.module.quantization.tensors["add"]
        before = target._parameters_of(*target.observer.range())
        assert 0 <= target.scale / before.scale - 1 <= greatest
        assert abs(int(target.zero_point) - int(before.zero_point)) <= 1


def test_a_second_look_changes_nothing():
    wrapped = edgeq.PTCFxModule(network("separable"), "DEFAULT").calibrate(batches())
    before = {key: value.clone() for key, value in wrapped.state_dict().items()}
    avoid_ties(wrapped.module)
    assert all(torch.equal(value, before[key]) for key, value in wrapped.state_dict().items())
