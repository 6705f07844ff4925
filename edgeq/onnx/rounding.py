"""Requantization written out in plain operators, for backends that do not round half to even: QuantizeLinear and the
QLinear operators of ONNX know no other rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.arithmetic import Rounding
from edgeq.onnx.graphs import add_initializer, numbers_of, operand


class Chain:
    """Nodes one after the other, each named `prefix`/operator, that begin at a value."""

    def __init__(self, graph: ir.Graph, prefix: str, value: ir.Value) -> None:
        self.graph, self.prefix, self.value = graph, prefix, value
        self.nodes: list[ir.Node] = []

    def add(self, operator: str, *others: ir.Value | None, **attributes: Any) -> ir.Value:
        """Appends a node whose first input is the value so far, and returns its output, the value from then on."""
        node = ir.node(operator, [self.value, *others], attributes=attributes)
        taken = sum(other.op_type == operator for other in self.nodes)
        node.name = f"{self.prefix}/{operator}" + (f"_{taken + 1}" if taken else "")
        self.nodes.append(node)
        self.value = node.outputs[0]
        return self.value

    def constant(self, name: str, numbers: Any, dtype: Any = np.float32) -> ir.Value:
        """A constant of the graph."""
        return add_initializer(self.graph, f"{self.prefix}.{name}", np.asarray(numbers, dtype))


def requantize(chain: Chain, quantizer: ir.Node, rounding: Rounding) -> list[ir.Node]:
    """The chain, whose value is a real code, continued to an integer code of the type of the quantizer."""
    chain.prefix = f"{chain.prefix}/requantize"  # the operation in front may have an Add of its own
    _round(chain, rounding)
    zero_point = numbers_of(operand(quantizer, 2))
    limits = np.iinfo(zero_point.dtype)
    chain.add("Add", chain.constant("zero", zero_point))
    chain.add("Clip", chain.constant("least", limits.min), chain.constant("greatest", limits.max))
    chain.add("Cast", to=ir.DataType.from_numpy(zero_point.dtype))
    return chain.nodes


def _round(chain: Chain, rounding: Rounding) -> None:
    """`arithmetic.round_to_integer`, operator by operator."""
    real = chain.value
    if rounding is Rounding.HALF_AWAY:
        chain.add("Abs")
    size = chain.value
    below = chain.add("Floor")
    if rounding is Rounding.FLOOR:
        return
    chain.value = size
    chain.add("Sub", below)
    chain.add("GreaterOrEqual", chain.constant("half", 0.5))
    chain.add("Cast", to=ir.DataType.FLOAT)
    rounded = chain.add("Add", below)
    if rounding is Rounding.HALF_AWAY:
        chain.value = real
        chain.add("Sign")
        chain.add("Mul", rounded)
