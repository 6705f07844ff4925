"""Reading and extending an onnx-ir graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.errors import ExportError

Array = np.ndarray


def operand(node: ir.Node, position: int) -> ir.Value:
    """An input that the node has. Raises ExportError for one that it leaves out."""
    value = optional(node, position)
    if value is None:
        raise ExportError(f"The node {node.name!r} ({node.op_type}) has no input {position}.")
    return value


def optional(node: ir.Node, position: int) -> ir.Value | None:
    """An input, or None where the node leaves it out."""
    return node.inputs[position] if position < len(node.inputs) else None


def constant_of(value: ir.Value | None) -> Array | None:
    """The numbers of an initializer; None for anything that is computed."""
    if value is None or value.const_value is None or value.producer() is not None:
        return None
    return value.const_value.numpy()


def numbers_of(value: ir.Value) -> Array:
    """The numbers of an initializer. Raises ExportError for a value that is computed."""
    numbers = constant_of(value)
    if numbers is None:
        raise ExportError(f"{value.name!r} must be a constant of the file, and is computed.")
    return numbers


def maker(value: ir.Value | None, kind: str | None = None) -> ir.Node | None:
    """The node that computes a value, if it is of that kind."""
    node = None if value is None else value.producer()
    return node if node is not None and kind in (None, node.op_type) else None


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value."""
    return [use.node for use in value.uses()]


def add_initializer(graph: ir.Graph, name: str, numbers: Array) -> ir.Value:
    """A new initializer; the name gets a number where it is taken."""
    unique, number = name, 1
    while unique in graph.initializers:
        unique, number = f"{name}_{number}", number + 1
    tensor = ir.tensor(numbers, name=unique)
    value = ir.Value(name=unique, const_value=tensor, shape=ir.Shape(numbers.shape), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def text(value: ir.Value | ir.Node) -> str:
    """The name of a value or a node; the empty string for one without."""
    return value.name or ""
