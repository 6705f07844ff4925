"""Small QDQ graphs written by hand, for passes over graphs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper


class Hand:
    """Collects nodes and initializers; `q` and `dq` add a pair's halves under names as edgeq gives them."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def constant(self, name: str, values) -> str:
        if name not in {tensor.name for tensor in self.tensors}:
            self.tensors.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str | None = None, **attributes) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", **attributes))
        return output

    def q(self, x: str, name: str, scale: float, zero_point: np.generic) -> str:
        parameters = [
            self.constant(f"{name}_scale", np.float32(scale)),
            self.constant(f"{name}_zero_point", zero_point),
        ]
        self.nodes.append(
            helper.make_node("QuantizeLinear", [x, *parameters], [f"{name}/codes"], name=f"{name}/QuantizeLinear")
        )
        return f"{name}/codes"

    def dq(self, name: str, output: str | None = None) -> str:
        return self.node("DequantizeLinear", [f"{name}/codes", f"{name}_scale", f"{name}_zero_point"], output)

    def weight(self, name: str, codes, scale, axis: int = 0) -> str:
        codes, scale = np.asarray(codes), np.asarray(scale, np.float32)
        zero = np.zeros(scale.shape, codes.dtype)
        inputs = [
            self.constant(name, codes),
            self.constant(f"{name}_scale", scale),
            self.constant(f"{name}_zero", zero),
        ]
        return self.node("DequantizeLinear", inputs, **({"axis": axis} if scale.ndim else {}))

    def proto(self, output: str, shape: tuple[int, ...], opset: int = 17) -> onnx.ModelProto:
        """The model from `x` of that shape to `output`."""
        graph = helper.make_graph(
            self.nodes,
            "hand",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.tensors,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

    def model(self, output: str, shape: tuple[int, ...], opset: int = 17) -> ir.Model:
        return ir.from_proto(onnx.shape_inference.infer_shapes(self.proto(output, shape, opset)))
