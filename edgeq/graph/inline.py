"""The graphs of networks inside of a network, in the places where they are called."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from edgeq.graph.kinds import module_of
from edgeq.graph.program import Program
from edgeq.spec import QConfig

Node = Any  # torch.fx.Node: its arguments are typed too widely to be of use


@dataclass
class Inlined:
    """A graph with those of other networks in it. `operations` has an entry for each tensor of integers, as a
    converted network has, and `qconfigs` the presets of those that came from other networks.
    """

    graph: fx.Graph = field(default_factory=fx.Graph)
    operations: dict[str, str] = field(default_factory=dict)
    qconfigs: dict[str, QConfig] = field(default_factory=dict)


def inlined(graph: fx.Graph, root: nn.Module, operations: dict[str, str]) -> Inlined:
    """A copy of `graph`, which runs over `root` and has the tensors `operations`, with the graph of each converted
    network in the places where it is called.
    """
    return _Inliner(root, operations).run(graph)


class _Inliner:
    def __init__(self, root: nn.Module, operations: dict[str, str]) -> None:
        self.root, self.known = root, operations
        self.made = Inlined()

    def run(self, outer: fx.Graph) -> Inlined:
        """What comes of it, in the order of the data."""
        values: dict[Node, Any] = {}
        for node in outer.nodes:
            args, kwargs = (fx.node.map_arg(item, values.__getitem__) for item in (node.args, node.kwargs))
            module = module_of(node, self.root)
            if isinstance(module, Program):
                values[node] = self._call(str(node.target), module, args, kwargs)
            elif node.op == "output":
                self.made.graph.output(args[0])
            elif node.target is operator.getitem and not isinstance(args[0], fx.Node):
                values[node] = args[0][args[1]]  # of what a network gives
            else:
                copied = values[node] = self._copied(node, args, kwargs, "")
                if node.name in self.known:
                    self.made.operations[copied.name] = self.known[node.name]
        self.made.graph.lint()
        return self.made

    def _copied(self, node: Node, args: Any, kwargs: Any, prefix: str) -> Node:
        target = f"{prefix}{node.target}" if node.op in ("call_module", "get_attr") else node.target
        made = self.made.graph.create_node(node.op, target, args, kwargs, f"{prefix.replace('.', '_')}{node.name}")
        made.meta = dict(node.meta)
        return made

    def _call(self, path: str, part: Any, args: Any, kwargs: Any) -> Any:
        given = {**dict(zip(part.argument_names, args, strict=False)), **kwargs}
        values: dict[Node, Any] = {}
        result: Any = None
        for node in part.fx_graph.nodes:
            if node.op == "placeholder":
                values[node] = given[node.target] if node.target in given else node.args[0]
                continue
            args, kwargs = (fx.node.map_arg(item, values.__getitem__) for item in (node.args, node.kwargs))
            if node.op == "output":
                result = args[0]
            else:
                copied = values[node] = self._copied(node, args, kwargs, f"{path}.")
                if node.name in part.operations:
                    self.made.operations[copied.name] = part.operations[node.name]
                    self.made.qconfigs[copied.name] = part.qconfig_of(node.name)
        return result
