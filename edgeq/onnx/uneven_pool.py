"""Adaptive average pools whose windows differ in size, which ONNX has no operator for, as matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edgeq.graph.kinds import module_of
from edgeq.graph.program import Program

MODULES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
FUNCTIONS = (functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d)


class UnevenPool(nn.Module):
    """An adaptive average pool for inputs of one size: a matrix for each axis takes the means of its windows."""

    def __init__(self, sizes: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = tuple(range(-len(sizes), 0))
        for axis, size, output in zip(self.axes, sizes, outputs, strict=True):
            self.register_buffer(f"means{-axis}", window_means(size, output))

    def forward(self, x: Tensor) -> Tensor:
        for axis in self.axes:
            x = torch.matmul(x.transpose(axis, -1), self.get_buffer(f"means{-axis}")).transpose(axis, -1)
        return x


def window_means(size: int, output: int) -> Tensor:
    """The matrix (size, output) whose columns take the means of the windows of an adaptive pool along one axis."""
    matrix = torch.zeros(size, output)
    for column in range(output):
        low, high = column * size // output, -(-(column + 1) * size // output)
        matrix[low:high, column] = 1 / (high - low)
    return matrix


def write_out_uneven_pools(program: Program, values: dict[fx.Node, Any]) -> None:
    """Replaces, in place, the adaptive average pools of `program` whose windows differ in size; `values` has the
    value of each node for the inputs that it is exported with.
    """
    for node in list(program.fx_graph.nodes):
        module = module_of(node, program)
        if not isinstance(module, MODULES) and node.target not in FUNCTIONS:
            continue
        source: Any = node.args[0]
        rank = int(str(type(module).__name__ if module is not None else node.target.__name__)[-2])  # type: ignore[union-attr]
        sizes, outputs = tuple(values[source].shape[-rank:]), tuple(values[node].shape[-rank:])
        if all(size % output == 0 for size, output in zip(sizes, outputs, strict=True)):
            continue
        path = f"uneven_pool_{node.name}"
        program.tree.add_module(path, UnevenPool(sizes, outputs))
        with program.fx_graph.inserting_before(node):
            pooled = program.fx_graph.call_module(path, (source,))
        node.replace_all_uses_with(pooled)
        program.fx_graph.erase_node(node)
