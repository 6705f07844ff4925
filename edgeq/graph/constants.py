"""What a network computes of its own tensors only, computed once: a table of positions, biases of relative places.

A runtime does so too when it loads a file, but with kernels of its choice, which may round otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from edgeq.graph.interpreter import Interpreter
from edgeq.graph.kinds import module_of
from edgeq.graph.operators import operator_of

Node = Any  # torch.fx.Node: its arguments are typed too widely to be of use


def fold_constants(
    graph: fx.Graph, root: nn.Module, keep: Callable[[str, Tensor], str]
) -> list[tuple[str, str | None]]:
    """Replaces, in place, the tensors that depend on no input by attributes, where `keep` puts them: it is given a
    node's name and the tensor, and returns the path. Returns the names of the nodes that are gone, each with the
    path of the module that it called, if any.
    """
    values = _constants(graph, root)
    ends = [node for node in values if node.op != "get_attr" and any(user not in values for user in node.users)]
    for node in ends:
        with graph.inserting_after(node):
            constant = graph.get_attr(keep(node.name, values[node]))
        for user in list(node.users):
            if user not in values:
                user.replace_input_with(node, constant)
    gone = []
    for node in reversed(list(values)):
        if node.op != "get_attr" and not node.users:
            graph.erase_node(node)
            gone.append((node.name, str(node.target) if node.op == "call_module" else None))
    return gone


def _constants(graph: fx.Graph, root: nn.Module) -> dict[Node, Tensor]:
    """The nodes that depend on no input, and their tensors."""
    run = Interpreter(root, graph=graph)
    values: dict[Node, Tensor] = {}
    for node in graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr":
            value = run.get_attr(node.target, (), {})
        elif node.op.startswith("call") and sources and all(source in values for source in sources):
            if operator_of(node, module_of(node, root)).name == "random":
                continue
            args, kwargs = (fx.node.map_arg(item, values.__getitem__) for item in (node.args, node.kwargs))
            value = getattr(run, node.op)(node.target, args, kwargs)
        else:
            continue
        if isinstance(value, Tensor):
            values[node] = value
    return values
