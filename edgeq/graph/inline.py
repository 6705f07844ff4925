"""The graphs of networks inside of a network, in the places where they are called."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from edgeq.graph.kinds import module_of
from edgeq.graph.program import Program

Node = Any  # torch.fx.Node: its arguments are typed too widely to be of use


def inlined(graph: fx.Graph, root: nn.Module, operations: dict[str, str]) -> tuple[fx.Graph, dict[str, str]]:
    """A copy of `graph`, which runs over `root`, with the graph of each converted network in it in the place of its
    calls; and `operations`, a converted network's by name of node, with theirs.
    """
    return _Inliner(root, operations).run(graph)


class _Inliner:
    def __init__(self, root: nn.Module, operations: dict[str, str]) -> None:
        self.root, self.known = root, operations
        self.graph = fx.Graph()
        self.operations: dict[str, str] = {}

    def run(self, outer: fx.Graph) -> tuple[fx.Graph, dict[str, str]]:
        """The new graph and its operations, in the order of the data."""
        values: dict[Node, Any] = {}
        for node in outer.nodes:
            args, kwargs = (_mapped(item, values) for item in (node.args, node.kwargs))
            module = module_of(node, self.root)
            if isinstance(module, Program):
                values[node] = self._call(str(node.target), module, args, kwargs)
            elif node.op == "output":
                self.graph.output(args[0])
            else:
                values[node] = self._copied(node, args, kwargs, "", self.known)
        self.graph.lint()
        return self.graph, self.operations

    def _copied(self, node: Node, args: Any, kwargs: Any, prefix: str, operations: dict[str, str]) -> Node:
        target = f"{prefix}{node.target}" if node.op in ("call_module", "get_attr") else node.target
        made = self.graph.create_node(node.op, target, args, kwargs, f"{prefix.replace('.', '_')}{node.name}")
        made.meta = dict(node.meta)
        if node.name in operations:
            self.operations[made.name] = operations[node.name]
        return made

    def _call(self, path: str, part: Any, args: Any, kwargs: Any) -> Any:
        given = {**dict(zip(part.argument_names, args, strict=False)), **kwargs}
        values: dict[Node, Any] = {}
        result: Any = None
        for node in part.fx_graph.nodes:
            if node.op == "placeholder":
                values[node] = given[node.target] if node.target in given else node.args[0]
                continue
            args, kwargs = (_mapped(item, values) for item in (node.args, node.kwargs))
            if node.op == "output":
                result = args[0]
            else:
                values[node] = self._copied(node, args, kwargs, f"{path}.", part.operations)
        return result


def _mapped(value: Any, values: dict[Node, Any]) -> Any:
    """`value` with what stands for each node in place of it, which may be a container."""
    if isinstance(value, fx.Node):
        return values[value]
    if isinstance(value, dict):
        return {key: _mapped(item, values) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_mapped(item, values) for item in (value.start, value.stop, value.step)))
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, values) for item in value)
    return value
