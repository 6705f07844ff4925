"""Which nodes of a graph stand for floating tensors; all others are never touched."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeq.graph.conditions import argument
from edgeq.graph.operators import Behaviour, behaviour_of, data_inputs, operator_of

FLOATING = "edgeq_floating"  # key in a node's meta: whether it is a floating tensor, where the capture knows
CREATORS = ("creator", "new", "random")
LOOK_UPS = ("embedding", "embedding_bag")


def module_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """The module that a node calls, or None. Everything asks for it, of every node: no attributes are looked up."""
    if node.op != "call_module":
        return None
    module = root
    for name in str(node.target).split("."):
        module = module._modules[name]  # type: ignore[assignment]
    return module


def floating_nodes(graph: fx.Graph, root: nn.Module) -> set[fx.Node]:
    """The nodes that give a floating tensor, or a tuple of them, judged from the graph alone.

    Inputs count as floating unless an embedding looks them up or their default says otherwise, and so does
    whatever a layer computes with. A wrong guess does no harm: quantizers let everything pass that is no floating
    tensor.
    """
    floating: set[fx.Node] = set()
    for node in graph.nodes:
        module = module_of(node, root)
        if behaviour_of(node, module) in (Behaviour.LAYER, Behaviour.MATMUL):
            floating.update(data_inputs(node, module))
        if _is_floating(node, root, floating):
            floating.add(node)
    containers = bundles(graph)
    floating -= containers
    return floating - _between_integers(graph, floating | containers)


def _between_integers(graph: fx.Graph, floating: set[fx.Node]) -> set[fx.Node]:
    """The floating nodes that are computed from integers alone, without a parameter, and of which only integers are
    made, as the buckets of relative positions are: a range for them would put an index elsewhere.
    """
    found: set[fx.Node] = set()
    for node in graph.nodes:
        sources = node.all_input_nodes if node.op in ("call_function", "call_method") else []
        if node in floating and sources and all(source in found or source not in floating for source in sources):
            found.add(node)
    for node in reversed(graph.nodes):
        readers = [user for user in node.users if user.op == "output" or (user in floating and user not in found)]
        if readers or not node.users:
            found.discard(node)
    return found


def bundles(graph: fx.Graph) -> set[fx.Node]:
    """The inputs, and parts of inputs, that seem to be tuples, dicts or objects with tensors in them: whatever reads
    them picks an item by its number or key, or an attribute that tensors lack.
    """
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_input = node.op == "placeholder" or (_picks(node) and node.args[0] in found)
        if is_input and node.users and all(_picks(user) and user.args[0] is node for user in node.users):
            found.add(node)
    return found


def _picks(node: fx.Node) -> bool:
    if node.target is getattr:
        return not hasattr(Tensor, str(node.args[1]))
    return node.target is operator.getitem and isinstance(node.args[1], int | str)


def _is_floating(node: fx.Node, root: nn.Module, floating: set[fx.Node]) -> bool:
    if FLOATING in node.meta:
        return bool(node.meta[FLOATING])
    if node.op == "placeholder":
        default = node.args[0] if node.args else None
        return (default is None or isinstance(default, Tensor)) and not _is_looked_up(node, root)
    if node.op == "get_attr":
        value = attribute(root, str(node.target))
        return isinstance(value, Tensor) and value.is_floating_point()
    if node.op == "output":
        return False
    types = _types(node)
    if types:
        return all(kind.is_floating_point for kind in types)
    module = module_of(node, root)
    if behaviour_of(node, module) is Behaviour.PLAIN:
        return False
    if operator_of(node, module).name in (*LOOK_UPS, *CREATORS):
        return True
    return any(source in floating for source in node.all_input_nodes)


def _types(node: fx.Node) -> list[torch.dtype]:
    """The types that a call names: x.float(), x.to(torch.float32), torch.arange(9, dtype=torch.float32)."""
    named = {"float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}
    if node.op == "call_method" and node.target in named:
        return [named[str(node.target)]]
    values = (*node.args, node.kwargs.get("dtype")) if node.op.startswith("call") else ()
    return [value for value in values if isinstance(value, torch.dtype)]


def _is_looked_up(node: fx.Node, root: nn.Module) -> bool:
    """Whether an input is the indices of a look-up, or the offsets of its bags."""
    for user in node.users:
        module = module_of(user, root)
        if operator_of(user, module).name in LOOK_UPS:
            offsets = argument(user, 2 if module is None else 1, "offsets")
            if node in (argument(user, 0, "input"), offsets):
                return True
    return False


def table_of(node: fx.Node, root: nn.Module) -> tuple[int, str]:
    """What is the same for two look-ups in the same table: its parameter, and the rows of that."""
    module = module_of(node, root)
    if module is not None:
        return id(module.weight), ""
    weight, rows = argument(node, 1, "weight"), ""
    if weight.target is operator.getitem:
        weight, rows = weight.args[0], str(weight.args[1])
    return id(attribute(root, str(weight.target))), rows


def attribute(root: nn.Module, path: str) -> Any:
    """The attribute of `root` at a dotted path."""
    *modules, name = path.split(".")
    module = root.get_submodule(".".join(modules))
    return getattr(module.__dict__.get("_tree", module), name)
