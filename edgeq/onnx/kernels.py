"""Which kernels ONNX Runtime chose for a file: the proof that it runs in integers."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

from edgeq.onnx.session import load

INTEGER_PRODUCTS = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger"}
)
FLOAT_PRODUCTS = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})


@dataclass(frozen=True)
class Kernels:
    """How many nodes of each operator are left after the runtime's optimizations."""

    counts: dict[str, int]

    @property
    def integer_products(self) -> int:
        """Convolutions and matrix products that run in integers."""
        return sum(count for name, count in self.counts.items() if name in INTEGER_PRODUCTS)

    @property
    def float_products(self) -> int:
        """Convolutions and matrix products that run in float."""
        return sum(count for name, count in self.counts.items() if name in FLOAT_PRODUCTS)

    def __str__(self) -> str:
        total = self.integer_products + self.float_products
        listed = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        return f"ONNX Runtime runs {self.integer_products} of {total} products in integers: {listed}"


def kernels_of(model: onnx.ModelProto) -> Kernels:
    """The operators of the graph that ONNX Runtime runs on the CPU once it has optimized `model`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # One level below all: the last one only lays tensors out for the CPU at hand.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimized.onnx")
        options.optimized_model_filepath = str(path)
        load(model, options)
        optimized = onnx.load(path)
    return Kernels(dict(Counter(node.op_type for node in optimized.graph.node)))
