"""The two operations that everything quantized is exported as: `edgeq::quantize` and `edgeq::dequantize`.

They mean what QuantizeLinear and DequantizeLinear of ONNX mean, and PyTorch's exporters write those for them.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from edgeq import arithmetic

_library = torch.library.Library("edgeq", "DEF")
_library.define("quantize(Tensor x, Tensor scale, Tensor zero_point, int axis) -> Tensor")
_library.define("dequantize(Tensor codes, Tensor scale, Tensor zero_point, int axis) -> Tensor")


def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    limits = torch.iinfo(zero_point.dtype)
    return arithmetic.quantize(x, scale, zero_point, limits.min, limits.max, axis, dtype=zero_point.dtype)


def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    return arithmetic.dequantize(codes, scale, zero_point, axis)


_library.impl("quantize", _quantize, "CompositeExplicitAutograd")
_library.impl("dequantize", _dequantize, "CompositeExplicitAutograd")


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int = 0) -> Tensor:
    """Codes of the type of `zero_point`, which they saturate at; as one operation of an exported graph."""
    return _operation("quantize", x, scale, zero_point, axis)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int = 0) -> Tensor:
    """The numbers that codes stand for, float32; as one operation of an exported graph."""
    return _operation("dequantize", codes, scale, zero_point, axis)


def _operation(name: str, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    if exporting():
        from edgeq.onnx import symbolics  # only now: it imports torch.onnx

        return symbolics.emit(name, x, scale, zero_point, axis)
    return getattr(torch.ops.edgeq, name)(x, scale, zero_point, axis)


def exporting() -> bool:
    """Whether an ONNX exporter, or torch.export, is reading the network right now."""
    if torch.compiler.is_compiling():
        # What `torch.compiler.is_exporting` returns; the call itself is always true under Dynamo of PyTorch 2.11.
        return bool(torch.compiler._is_exporting_flag)
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()
