"""Which nodes of a graph stand for floating tensors; all others are never touched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeq.graph.operators import Behaviour, behaviour_of, operator_of

INTEGER_TYPES = {torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool}
CREATORS = {torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.linspace, torch.empty}


def module_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """The module that a node calls, or None."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def floating_nodes(graph: fx.Graph, root: nn.Module) -> set[fx.Node]:
    """The nodes that give a floating tensor, or a tuple of them, judged from the graph alone.

    Inputs count as floating unless an embedding looks them up or their default says otherwise. A wrong guess
    does no harm: quantizers let everything pass that is no floating tensor.
    """
    floating: set[fx.Node] = set()
    for node in graph.nodes:
        if _is_floating(node, root, floating):
            floating.add(node)
    return floating


def _is_floating(node: fx.Node, root: nn.Module, floating: set[fx.Node]) -> bool:
    if node.op == "placeholder":
        default = node.args[0] if node.args else None
        return (default is None or isinstance(default, Tensor)) and not _is_looked_up(node, root)
    if node.op == "get_attr":
        value = attribute(root, str(node.target))
        return isinstance(value, Tensor) and value.is_floating_point()
    if node.op == "output" or node.kwargs.get("dtype") in INTEGER_TYPES:
        return False
    module = module_of(node, root)
    if behaviour_of(node, module) is Behaviour.PLAIN:
        return False
    if (
        node.op == "call_method"
        and node.target in ("to", "type")
        and any(a in INTEGER_TYPES for a in _plain(node.args))
    ):
        return False
    if operator_of(node, module).name == "embedding" or node.target in CREATORS:
        return True
    return any(source in floating for source in node.all_input_nodes)


def _plain(values: tuple[Any, ...]) -> list[Any]:
    return [value for value in values if isinstance(value, torch.dtype)]


def _is_looked_up(node: fx.Node, root: nn.Module) -> bool:
    return any(operator_of(user, module_of(user, root)).name == "embedding" for user in node.users)


def attribute(root: nn.Module, path: str) -> Any:
    """The attribute of `root` at a dotted path."""
    *modules, name = path.split(".")
    return getattr(root.get_submodule(".".join(modules)), name)
