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


def stale_reader(graph: fx.Graph, root: nn.Module, writer: fx.Node) -> fx.Node | None:
    """A node behind `writer`, which writes into its first argument, that reads the same memory through another
    node made before. Once `writer` returns a new tensor instead, that one would miss what was written, unless the
    new tensor is assigned to it, as in ``x[0] += 1``.
    """
    written = writer.args[0]
    if not isinstance(written, fx.Node):
        return None
    order = {node: index for index, node in enumerate(graph.nodes)}
    views = _views(written, root)
    for node in list(order)[: order[writer]]:
        if node is not written and _overlap(_views(node, root), views):
            late = [user for user in sorted(node.users, key=order.__getitem__) if order[user] > order[writer]]
            if late and not (late[0].target is operator.setitem and late[0].args == (node, written.args[1], writer)):
                return late[0]
    return None


def _views(node: fx.Node, root: nn.Module) -> list[fx.Node]:
    """The node that made the memory which `node` may look at, the views between, and `node`."""
    line = [node]
    while _is_view(node, root):
        node = node.args[0]  # type: ignore[assignment]
        line.insert(0, node)
    return line


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
