"""What values are divided by: constants, and numbers that are kept from zero, as in ``x / (norm + 1e-5)``.

The smallest of them count most, and one scale for their whole range makes zeros of just those; so they stay float.
What a divisor is computed from is quantized as ever.
"""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from edgeq.graph.conditions import argument
from edgeq.graph.kinds import module_of
from edgeq.graph.operators import Behaviour, behaviour_of, data_inputs, operator_of

DIVISOR = "others are divided by it: what is near zero counts most, and one scale for the whole range loses it"

EPSILON = 0.01  # what is added to a divisor, or is the least of it, only to keep it from zero
INVERSES = (torch.rsqrt, torch.reciprocal, "rsqrt", "reciprocal")
ADDITIONS = (operator.add, torch.add, "add", "__radd__")
PASSED_ON = ("add", "sub", "mul", "power", "function", "clamp", "clamp_min")  # beside what only moves


def divisors(graph: fx.Graph, root: nn.Module) -> dict[fx.Node, str]:
    """The nodes of `graph` that stay float since they are nothing but divisors, each with the reason."""
    candidates: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        divides = bool(node.users) and all(_divides(user, node) or user in candidates for user in node.users)
        if divides and (node.op == "get_attr" or (node.op.startswith("call") and _passes_on(node, root))):
            candidates.add(node)
    kept: set[fx.Node] = set()
    for node in graph.nodes:
        if node in candidates and (node.op == "get_attr" or _is_kept_from_zero(node, root) or _is_of(kept, node, root)):
            kept.add(node)
    for node in reversed(graph.nodes):
        if node in kept and not all(user in kept or _divides(user, node) for user in node.users):
            kept.discard(node)
    return dict.fromkeys(kept, DIVISOR)


def _divides(user: fx.Node, node: fx.Node) -> bool:
    if user.target in INVERSES:
        return True
    if user.target in (operator.truediv, torch.div, torch.divide, torch.true_divide, "div", "divide", "true_divide"):
        return argument(user, 1, "other") is node and argument(user, 0, "input") is not node
    return False


def _passes_on(node: fx.Node, root: nn.Module) -> bool:
    module = module_of(node, root)
    return operator_of(node, module).name in PASSED_ON or behaviour_of(node, module) is Behaviour.SHARE


def _is_kept_from_zero(node: fx.Node, root: nn.Module) -> bool:
    """Whether a small positive number is added, or is the least that may come out."""
    if node.target in ADDITIONS:
        numbers = [item for item in (*node.args[:2], node.kwargs.get("other")) if isinstance(item, int | float)]
        return any(0 < number <= EPSILON for number in numbers)
    if operator_of(node, module_of(node, root)).name in ("clamp", "clamp_min"):
        least = argument(node, 1, "min")
        return isinstance(least, int | float) and 0 < least <= EPSILON
    return False


def _is_of(kept: set[fx.Node], node: fx.Node, root: nn.Module) -> bool:
    sources = data_inputs(node, module_of(node, root)) if node.op.startswith("call") else []
    return bool(sources) and all(source in kept for source in sources)
