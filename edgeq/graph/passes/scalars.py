"""Numbers that values are multiplied with, or that are added to them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from edgeq.graph.kinds import floating_nodes
from edgeq.graph.operators import Behaviour, behaviour_of
from edgeq.graph.passes.draft import Draft
from edgeq.graph.passes.layers import as_folded, layer_of, sample_of
from edgeq.graph.passes.registry import Stage, rewrite
from edgeq.modules.affine import Affine
from edgeq.modules.folding import Folds

Numbers = tuple[float, float]  # what a value is multiplied with, and what is then added

# What an operation with a number behind the value does to it; None where nothing of the kind.
BEHIND: dict[str, Callable[[float], Numbers | None]] = {
    "add": lambda number: (1.0, number),
    "sub": lambda number: (1.0, -number),
    "mul": lambda number: (number, 0.0),
    "div": lambda number: (1 / number, 0.0) if number != 0 else None,
}
# The same with the number in front of it.
IN_FRONT: dict[str, Callable[[float], Numbers | None]] = {
    "add": lambda number: (1.0, number),
    "sub": lambda number: (-1.0, number),
    "mul": lambda number: (number, 0.0),
}


@rewrite("scalar_merging", Stage.TIDY, "x * a * b -> x * (a b); x + a + b -> x + (a + b)")
def scalar_merging(draft: Draft) -> None:
    """Two operations with a number, both of which only multiply or only add, become one. Arithmetic on integers stays
    what it is.
    """
    floating = floating_nodes(draft.graph, draft.root)
    for node in (node for node in draft.nodes() if node in floating):
        inner: Any = _operand(node) if _numbers(draft, node) else None
        first = None if inner is None else _numbers(draft, inner)
        second = _numbers(draft, node)
        if first is None or second is None or draft.reader(inner) not in (node, None) or len(inner.users) > 1:
            continue
        merged = composed(first, second)
        if (merged[0] != 1.0 and merged[1] != 0.0) or not draft.gives_way(inner, node):
            continue
        source = _operand(inner)
        x = draft.sample(4, 8)
        before = draft.value(node, {source: x})
        adds = first[0] == second[0] == 1.0
        draft.retarget(node, operator.add if adds else operator.mul, (source, merged[1] if adds else merged[0]))
        what = f"two operations with a number -> {'+' if adds else '*'} {node.args[1]:.6g}"
        draft.record(node, what, before, draft.value(node, {source: x}))
        draft.erase([inner])


@rewrite("scalar_folding", Stage.FOLD, "a layer's output * a + b -> its weight * a, its bias * a + b")
def scalar_folding(draft: Draft) -> None:
    """Products, quotients and sums with numbers, and a change of sign, right behind a layer with weights, or behind
    the batch norm that it takes in, go into its weight and bias.
    """
    for head, chain in draft.chains().items():
        layer = layer_of(draft, head)
        if layer is None or chain.affine is not None:
            continue
        tail = chain.norm or head
        found = _behind(draft, tail, head)
        numbers = (1.0, 0.0)
        for _, more in found:
            numbers = composed(numbers, more)
        if not found or numbers[0] == 0 or not all(map(math.isfinite, numbers)):
            continue
        norm = None if chain.norm is None else draft.module(chain.norm)
        x = sample_of(draft, layer)
        last = found[-1][0]
        before = draft.value(last, {layer.source: x})
        path = draft.install(f"{tail.name}_affine", Affine(*numbers))
        affine = draft.insert(last, tail, path, (tail,), f"{tail.name}_affine")
        last.replace_all_uses_with(affine)
        kinds = ", ".join(draft.kind(node) for node, _ in found)
        what = f"{kinds} -> in the weight and bias: * {numbers[0]:.6g} + {numbers[1]:.6g}"
        folds = Folds(norm=norm, factor=numbers[0], offset=numbers[1])
        draft.record(head, what, before, as_folded(layer, folds, x))
        draft.erase(node for node, _ in reversed(found))


def composed(first: Numbers, second: Numbers) -> Numbers:
    """What two operations do, one after the other."""
    return first[0] * second[0], first[1] * second[0] + second[1]


def _behind(draft: Draft, node: fx.Node, head: fx.Node) -> list[tuple[fx.Node, Numbers]]:
    """The operations with numbers that follow a node, each the only reader of the one before."""
    found: list[tuple[fx.Node, Numbers]] = []
    while len(node.users) == 1:
        (node,) = node.users
        numbers = _numbers(draft, node)
        if numbers is None or not draft.gives_way(node, head):
            break
        found.append((node, numbers))
    return found


def _operand(node: fx.Node) -> Any:
    """The value that an operation with a number takes."""
    return next((arg for arg in node.args if isinstance(arg, fx.Node)), None)


def _numbers(draft: Draft, node: fx.Node) -> Numbers | None:
    """What an operation with a number does to its value; None for any other operation."""
    kind = draft.kind(node)
    if node.kwargs or behaviour_of(node, draft.module(node)) is not Behaviour.OWN:
        return None
    if kind == "neg" and len(node.args) == 1:
        return -1.0, 0.0
    if len(node.args) != 2:
        return None
    if str(getattr(node.target, "__name__", node.target)) in ("rsub", "__rsub__", "__rtruediv__"):
        return None
    for rules, value, number in ((BEHIND, 0, 1), (IN_FRONT, 1, 0)):
        operand = node.args[number]
        if isinstance(node.args[value], fx.Node) and isinstance(operand, int | float) and kind in rules:
            return rules[kind](float(operand))
    return None
