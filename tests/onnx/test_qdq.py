"""PyTorch's own exporters, called by the user, write Q and DQ for prepared and for converted networks."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import edgeq
from edgeq import arithmetic
from edgeq.modules.qdq import dequantize, exporting, quantize
from tests.onnx.ort import calibrated, converted, image, nodes_of, numbers, session


def plainly(module, dynamo: bool) -> onnx.ModelProto:
    if dynamo:
        program = torch.onnx.export(module, (image(),), dynamo=True, opset_version=18, verbose=False)
        return program.model_proto
    buffer = io.BytesIO()
    torch.onnx.export(module, (image(),), buffer, dynamo=False, opset_version=17)
    return onnx.load_from_string(buffer.getvalue())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("preset", ["DEFAULT", "WC4_AT8"])
@pytest.mark.parametrize("make", [calibrated, converted])
def test_a_plain_export_holds_every_pair_and_computes_the_same(make, preset, dynamo):
    module = make("residual", preset).eval()
    model = plainly(module, dynamo)
    assert {node.domain for node in model.graph.node} <= {""}
    assert len(nodes_of(model, "QuantizeLinear")) >= 7
    assert len(nodes_of(model, "DequantizeLinear")) >= 7 + 3
    made = session(model, fused=False)
    found = made.run(None, {made.get_inputs()[0].name: image().numpy()})[0]
    with torch.no_grad():
        expected = module(image()).numpy()
    step = float(converted("residual", preset).module.fc.target.scale)
    assert np.abs(found - expected).max() <= 1.01 * step
    assert (found == expected).mean() >= 0.9


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
def test_a_plain_export_of_a_converted_network_keeps_int8_weights_and_int32_biases(dynamo):
    tensors = numbers(plainly(converted("residual"), dynamo))
    for path in ("conv1", "conv2", "fc"):
        layer = converted("residual").module.get_submodule(path)
        assert any(np.array_equal(t, layer.weight.numpy()) and t.dtype == np.int8 for t in tensors.values())
        assert any(np.array_equal(t, layer.bias.numpy()) and t.dtype == np.int32 for t in tensors.values())


def test_torch_export_keeps_the_two_operations():
    with torch.no_grad():
        program = torch.export.export(converted("residual").module, (image(),))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count("edgeq.quantize.default") == 8
    assert targets.count("edgeq.dequantize.default") >= 7 + 6
    assert torch.equal(program.module()(image()), converted("residual")(image()))


def test_the_operations_are_those_of_the_one_arithmetic():
    x = torch.linspace(-3, 3, 601)
    scale, zero_point = torch.tensor(0.013), torch.tensor(100, dtype=torch.uint8)
    codes = quantize(x, scale, zero_point)
    assert codes.dtype == torch.uint8
    expected = arithmetic.quantize(x, scale, zero_point, 0, 255, dtype=torch.uint8)
    assert torch.equal(codes, expected)
    assert torch.equal(dequantize(codes, scale, zero_point), arithmetic.dequantize(expected, scale, zero_point))
    assert (int(codes.min()), int(codes.max())) == (0, 255)


def test_per_channel_parameters_lie_along_their_axis():
    codes = torch.tensor([[1, 2], [3, 4]], dtype=torch.int8)
    scales, zeros = torch.tensor([1.0, 10.0]), torch.tensor([0, 1], dtype=torch.int8)
    assert torch.equal(dequantize(codes, scales, zeros, 0), torch.tensor([[1.0, 2.0], [20.0, 30.0]]))
    assert torch.equal(dequantize(codes, scales, zeros, 1), torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    assert torch.equal(quantize(dequantize(codes, scales, zeros, 1), scales, zeros, 1), codes)


def test_nothing_is_being_exported_outside_of_an_exporter():
    assert not exporting()


IMPORT = """
import torch
from torch.onnx._internal.torchscript_exporter.registration import registry
before = set(registry.all_functions())
import edgeq
assert set(registry.all_functions()) == before, set(registry.all_functions()) - before
import sys
assert not [name for name in sys.modules if name.split(".")[0] in ("onnx", "onnx_ir", "onnxruntime", "onnxscript")]
"""


def test_importing_edgeq_leaves_the_exporters_registry_alone_and_loads_no_onnx():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=Path(edgeq.__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
