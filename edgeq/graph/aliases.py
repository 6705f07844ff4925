"""Which nodes of a graph may share memory, so that a write into one is seen through the others."""

from __future__ import annotations

import operator

from torch import fx, nn

from edgeq.graph.kinds import module_of

VIEWS = {
    *("getitem", "getattr", "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"),
    *("transpose", "swapaxes", "swapdims", "permute", "movedim", "t", "select", "narrow", "diagonal", "unfold"),
    *("expand", "expand_as", "broadcast_to", "chunk", "split", "unbind", "tensor_split", "contiguous", "detach", "to"),
    *("float", "type_as", "Flatten", "Unflatten", "Identity"),
}  # names of methods, of functions, and of the classes of modules


class Aliases:
    """Which nodes of a graph share memory; learnt node by node, in the order of the graph (`position`)."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.root = root
        self.position = {node: index for index, node in enumerate(graph.nodes)}
        self.makers: dict[fx.Node, fx.Node] = {}  # of each node: the one that made the memory which it may look at
        self.sharers: dict[fx.Node, list[fx.Node]] = {}  # of each maker: itself and the views of its memory

    def add(self, node: fx.Node) -> None:
        """Takes in the next node."""
        maker = self.makers[node.args[0]] if _is_view(node, self.root) else node  # type: ignore[index]
        self.makers[node] = maker
        self.sharers.setdefault(maker, []).append(node)

    def stale_reader(self, writer: fx.Node, written: fx.Node) -> fx.Node | None:
        """A node behind `writer`, the next one, which writes into `written`, that reads the same memory through
        another node made before. Once `writer` returns a new tensor instead, that one would miss what was written,
        unless the new tensor is assigned to it, as in ``x[0] += 1``.
        """
        views = self._views(written)
        for node in self.sharers[views[0]]:
            if node is not written and _overlap(self._views(node), views):
                late = [user for user in node.users if self.position[user] > self.position[writer]]
                first = min(late, key=self.position.__getitem__, default=None)
                assigned = node, *written.args[1:2], writer
                if first and not (first.target is operator.setitem and first.args == assigned):
                    return first
        return None

    def _views(self, node: fx.Node) -> list[fx.Node]:
        """The node that made the memory which `node` may look at, the views between, and `node`."""
        line = [node]
        while node is not self.makers[node]:
            node = node.args[0]  # type: ignore[assignment]
            line.append(node)
        return line[::-1]


def _is_view(node: fx.Node, root: nn.Module) -> bool:
    if not node.op.startswith("call") or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    module = module_of(node, root)
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
    return name in VIEWS


def _overlap(one: list[fx.Node], other: list[fx.Node]) -> bool:
    """Whether two views may show the same numbers: those of one tensor, and not different items of it."""
    if one[0] is not other[0]:
        return False
    first, second = next(((a, b) for a, b in zip(one, other, strict=False) if a is not b), (None, None))
    if first is None or second is None or first.target is not operator.getitem or second.target is not operator.getitem:
        return True
    items = first.args[1], second.args[1]
    return items[0] == items[1] or not all(isinstance(item, int) and item >= 0 for item in items)
