"""The tensors inside of a tuple that one call returns, each as a node of its own.

A quantizer stands behind a tensor, not behind a tuple. Whoever takes the tuple of a recurrent layer apart, and
however (all of it, the hidden state only, item by item), reads the same nodes after `name_parts`.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

from edgeq.graph.conditions import argument
from edgeq.graph.kinds import module_of
from edgeq.graph.part import part
from edgeq.graph.trace import SCOPE

OF_LSTM: dict[str, tuple[int, ...]] = {"outputs": (0,), "hidden": (1, 0), "cell": (1, 1)}
OF_OTHERS: dict[str, tuple[int, ...]] = {"outputs": (0,), "hidden": (1,)}


def gives_tuple(module: nn.Module | None) -> bool:
    """Whether a module gives several tensors, which `name_parts` makes nodes of."""
    return isinstance(module, nn.RNNBase)


def name_parts(graph: fx.Graph, root: nn.Module) -> None:
    """Lets every reader of a recurrent layer's output read its parts, and gives the initial state of an LSTM as two
    tensors.
    """
    for node in list(graph.nodes):
        module = module_of(node, root)
        if not gives_tuple(module):
            continue
        is_lstm = isinstance(module, nn.LSTM)
        _name_inputs(graph, node, is_lstm)
        users = list(node.users)
        leaves = _parts(graph, node, OF_LSTM if is_lstm else OF_OTHERS)
        output, *states = leaves
        _replace(node, (output, tuple(states) if is_lstm else states[0]), users)
        for leaf in leaves:
            if not leaf.users:
                graph.erase_node(leaf)


def _name_inputs(graph: fx.Graph, node: fx.Node, is_lstm: bool) -> None:
    x, state = argument(node, 0, "input"), argument(node, 1, "hx")
    if is_lstm and isinstance(state, fx.Node):
        with graph.inserting_before(node):
            state = tuple(graph.call_function(operator.getitem, (state, index)) for index in (0, 1))
    node.args, node.kwargs = (x,) if state is None else (x, state), {}


def _parts(graph: fx.Graph, node: fx.Node, places: dict[str, tuple[int, ...]]) -> list[fx.Node]:
    found: list[fx.Node] = []
    for name, path in places.items():
        with graph.inserting_after(found[-1] if found else node):
            made = graph.create_node("call_function", part, (node, *path), name=name)
        made.meta[SCOPE] = node.target
        found.append(made)
    return found


def _replace(node: fx.Node, value: Any, users: list[fx.Node]) -> None:
    """Lets `users` of a node that gives a tuple read `value`, the tuple of its parts, instead."""
    for user in users:
        if user.target is operator.getitem and isinstance(user.args[1], int | slice):
            item = value[user.args[1]]
            if isinstance(item, fx.Node):
                user.replace_all_uses_with(item)
            else:
                _replace(user, item, list(user.users))
            user.graph.erase_node(user)
        else:
            arguments: Any = fx.node.map_arg((user.args, user.kwargs), lambda x: value if x is node else x)
            user.args, user.kwargs = arguments
