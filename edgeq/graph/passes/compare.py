"""Parts of a graph computed on data, before and after a change."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeq.graph.interpreter import Interpreter
from edgeq.graph.kinds import attribute
from edgeq.graph.results import tensors_in

ROUNDING = 200  # units in the last place of the greatest value: what the order of operations may cost


@contextmanager
def in_evaluation(root: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode, and no gradients recorded."""
    modes = {module: module.training for module in root.modules()}
    for module in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def evaluate(root: nn.Module, node: fx.Node, given: dict[fx.Node, Any]) -> Any:
    """The value of a node, from `given` ones that it depends on, each of which is computed at most once."""
    return _value(root, dict(given), node)


def _value(root: nn.Module, values: dict[fx.Node, Any], node: fx.Node) -> Any:
    if node not in values:
        value_of = partial(_value, root, values)
        args, kwargs = (fx.node.map_arg(item, value_of) for item in (node.args, node.kwargs))
        values[node] = _call(root, node, args, kwargs)
    return values[node]


def _call(root: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "get_attr":
        return attribute(root, str(node.target))
    if node.op == "call_module":
        return root.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


class Shapes(Interpreter):
    """Runs a graph and keeps the shape of every tensor, by node."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.of: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.of[n] = value.shape
        return value


def greatest_difference(before: Any, after: Any) -> tuple[float, float]:
    """The greatest absolute difference of two values with tensors in them, and the greatest absolute value of the
    first; NaN where one has numbers that the other lacks.
    """
    difference = size = 0.0
    for (_, one), (_, other) in zip(tensors_in(before), tensors_in(after), strict=True):
        if not (one.is_floating_point() and one.numel()):
            continue
        if one.shape != other.shape:
            return float("nan"), size
        finite = one.isfinite() if not math.isfinite(float((one - other).abs().max())) else None
        if finite is not None:  # infinities where both have one are no difference
            if not torch.equal(finite, other.isfinite()) or not bool(finite.any()):
                return float("nan"), size
            one, other = one[finite], other[finite]
        difference = max(difference, float((one - other).abs().max()))
        size = max(size, float(one.abs().max()))
    return difference, size


def is_rounding(difference: float, size: float, dtype: torch.dtype) -> bool:
    """Whether a difference is no more than what another order of the same operations can make of such values."""
    return difference <= ROUNDING * torch.finfo(dtype).eps * max(1.0, size)
