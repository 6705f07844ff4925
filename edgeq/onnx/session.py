"""ONNX Runtime, with and without its fusions, on any host."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgeq.errors import ExportError


class Runtime:
    """A session on the CPU. Without `fused` every node of the file runs as it stands. `exact` asks for kernels
    whose 16-bit intermediate sums do not saturate, on a host whose kernels for signed weights do: by an option
    of the runtime's where fusions are allowed, else by giving it the same weights as unsigned ones.
    """

    def __init__(self, model: onnx.ModelProto, fused: bool, exact: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if fused else level.ORT_DISABLE_ALL
        self.avoids_saturation = exact and saturates() and (fused or bool(_signed_weights(model)))
        if self.avoids_saturation and fused:
            options.add_session_config_entry("session.x64quantprecision", "1")
        elif self.avoids_saturation:
            model = with_unsigned_weights(model)
        self.session = load(model, options)
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(self, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name, in the order of the file."""
        feeds = dict(zip(self.inputs, inputs, strict=True))
        return dict(zip(self.outputs, self.session.run(self.outputs, feeds), strict=True))


def load(model: onnx.ModelProto, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session on the CPU. Raises ExportError when the runtime does not take the model."""
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own errors have no other base
        raise ExportError(
            f"ONNX Runtime does not load the file: {error}\n"
            "Another opset_version or format may do; verify=False writes the file without this check."
        ) from error


@lru_cache(maxsize=1)
def saturates() -> bool:
    """Whether this host's kernels for unsigned activations and signed weights saturate: those of x86 CPUs
    without VNNI add pairs of products in 16 bits.
    """
    codes = np.full((1, 64), 255, dtype=np.uint8)
    weight = np.full((64, 16), 127, dtype=np.int8)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, codes.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, (1, 16))],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    probe = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return bool((probe.run(None, {"x": codes})[0] != 64 * 255 * 127).any())


# Inputs that hold a weight and its zero point.
WEIGHT_INPUTS = {"QLinearConv": (3, 5), "MatMulInteger": (1, 3), "ConvInteger": (1, 3)}


def _signed_weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The int8 initializers that integer operators read as a weight or its zero point, by name."""
    names = {
        node.input[position]
        for node in model.graph.node
        for position in WEIGHT_INPUTS.get(node.op_type, ())
        if position < len(node.input)
    }
    tensors = model.graph.initializer
    return {tensor.name: tensor for tensor in tensors if tensor.name in names and tensor.data_type == TensorProto.INT8}


def with_unsigned_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which the weights of integer operators are unsigned, 128 greater like their zero points: the
    same network, for which the runtime has kernels that add products in 32 bits on every host.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = _signed_weights(copy)
    for tensor in weights.values():
        shifted = (numpy_helper.to_array(tensor).astype(np.int16) + 128).astype(np.uint8)
        tensor.CopyFrom(numpy_helper.from_array(shifted, tensor.name))
    stale = [info for info in copy.graph.value_info if info.name in weights]
    for info in stale:
        copy.graph.value_info.remove(info)
    return copy
