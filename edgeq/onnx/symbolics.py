"""How PyTorch's two ONNX exporters write `edgeq::quantize` and `edgeq::dequantize`, and what one of them lacks."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

FIRST_OPSET = 13  # of an axis in QuantizeLinear
NAMES = {"quantize": "QuantizeLinear", "dequantize": "DequantizeLinear"}


def emit(name: str, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """The operation, so that whichever exporter is reading the network writes the ONNX one.

    The TorchScript exporter finds a symbolic function that is registered here at the first use; the newer one
    takes the ONNX operator as it stands.
    """
    operation = getattr(torch.ops.edgeq, name)
    if torch.jit.is_tracing():
        _register()
        return operation(x, scale, zero_point, axis)
    if not torch.onnx.is_in_onnx_export():  # torch.export by itself: the operation stays
        return operation(x, scale, zero_point, axis)
    return torch.onnx.ops.symbolic(
        NAMES[name],
        (x, scale, zero_point),
        {"axis": axis},
        dtype=zero_point.dtype if name == "quantize" else torch.float32,
        shape=x.shape,
        version=FIRST_OPSET,
    )


@lru_cache(maxsize=1)
def _register() -> None:
    from torch.onnx import symbolic_helper

    @symbolic_helper.parse_args("v", "v", "v", "i")
    def quantize(g: Any, x: Any, scale: Any, zero_point: Any, axis: int) -> Any:
        return g.op("QuantizeLinear", x, scale, zero_point, axis_i=axis)

    @symbolic_helper.parse_args("v", "v", "v", "i")
    def dequantize(g: Any, codes: Any, scale: Any, zero_point: Any, axis: int) -> Any:
        return g.op("DequantizeLinear", codes, scale, zero_point, axis_i=axis)

    @symbolic_helper.parse_args("v", "is", "v", "v")
    def rms_norm(g: Any, x: Any, shape: list[int], weight: Any, eps: Any) -> Any:
        """``x / sqrt(mean(x ** 2) + eps) * weight``, which the TorchScript exporter does not know."""
        none = symbolic_helper._is_none(eps)
        least = torch.finfo(torch.float32).eps if none else symbolic_helper._maybe_get_const(eps, "f")
        axes = list(range(-len(shape), 0))
        mean = g.op("ReduceMean", g.op("Mul", x, x), axes_i=axes, keepdims_i=1)
        y = g.op("Div", x, g.op("Sqrt", g.op("Add", mean, g.op("Constant", value_t=torch.tensor(least)))))
        return y if symbolic_helper._is_none(weight) else g.op("Mul", y, weight)

    def tile(g: Any, x: Any, dims: Any) -> Any:
        """Tile, whose ranks must agree. The exporter's own decides about them in the file, with an invalid If."""
        rank, listed = symbolic_helper._get_tensor_rank(x), symbolic_helper._is_packed_list(dims)
        sizes = [len(symbolic_helper._unpack_list(dims))] if listed else symbolic_helper._get_tensor_sizes(dims)
        if rank is None or not sizes or sizes[0] is None:
            raise torch.onnx.errors.SymbolicValueError("A tile of a tensor of unknown rank cannot be written.", x)
        missing = rank - sizes[0]
        if missing > 0:
            ones = g.op("Constant", value_t=torch.ones(missing, dtype=torch.int64))
            dims = g.op("Concat", ones, dims, axis_i=0)
        elif missing < 0:
            x = symbolic_helper._unsqueeze_helper(g, x, list(range(-missing)))
        return g.op("Tile", x, dims)

    torch.onnx.register_custom_op_symbolic("aten::tile", tile, FIRST_OPSET)
    torch.onnx.register_custom_op_symbolic("aten::rms_norm", rms_norm, FIRST_OPSET)
    torch.onnx.register_custom_op_symbolic("edgeq::quantize", quantize, FIRST_OPSET)
    torch.onnx.register_custom_op_symbolic("edgeq::dequantize", dequantize, FIRST_OPSET)
