"""Rewrites of a traced graph before it is annotated. None changes what the network computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from edgeq.graph.conditions import DROPOUTS, argument
from edgeq.graph.modes import in_both_modes


def put_input_first(graph: fx.Graph) -> None:
    """Lets PyTorch's functions and modules have their data by position, ``relu(input=x)`` too: the passes that follow
    look for it there.
    """
    for node in graph.nodes:
        name = next((name for name in ("input", "tensors") if name in node.kwargs), None)
        if name is not None and not node.args and node.op in ("call_function", "call_module"):
            node.args = (node.kwargs[name],)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != name}


def drop_unread(graph: fx.Graph) -> None:
    """Erases calls of functions and methods, and attributes, that nothing reads: they would cost time and get
    quantizers. Modules stay, since a batch norm's statistics may be all that is wanted of one. Nothing works in
    place any more.
    """
    for node in reversed(graph.nodes):
        if node.op in ("call_function", "call_method", "get_attr") and not node.users and not node.is_impure():
            graph.erase_node(node)


def reshape_views(graph: fx.Graph) -> None:
    """Turns `view` into `reshape`, which gives the same numbers for any order of memory: edgeq evaluates
    convolutions with the channels last. And `x.mT` into a transpose, and `x.data` into `x.detach()`, which exporters
    know.
    """
    for node in graph.nodes:
        if node.target is getattr and node.args[1] == "data":
            node.op, node.target, node.args = "call_method", "detach", (node.args[0],)
        if node.target is getattr and node.args[1] == "mT":
            node.op, node.target, node.args = "call_method", "transpose", (node.args[0], -2, -1)
        if node.op != "call_method" or any(isinstance(value, torch.dtype) for value in node.args):
            continue
        node.target = {"view": "reshape", "view_as": "reshape_as"}.get(str(node.target), node.target)


def drop_constant_dropouts(graph: fx.Graph, in_training: Callable[[], fx.Graph]) -> None:
    """Takes out the dropouts that the program never lets drop anything, ``training=False``. In `graph`, traced in
    evaluation mode, those that follow the mode look the same; `in_training` traces the model in training mode, where
    the two differ. It is called only if there are any.
    """
    if not any(_is_dropout(node) and _training(node) is False for node in graph.nodes):
        return
    for node, other in in_both_modes(graph, in_training, _is_dropout):
        if _training(node) is _training(other) is False:
            node.replace_all_uses_with(argument(node, 0, "input"))
            graph.erase_node(node)
        elif argument(node, 1, "p", 0.5) != argument(other, 1, "p", 0.5):
            node.args, node.kwargs = (node.args[0], argument(other, 1, "p", 0.5), False), {}


def _is_dropout(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in DROPOUTS


def _training(dropout: fx.Node) -> Any:
    return argument(dropout, 2, "training", True)


def dropout_modules(graph: fx.Graph) -> dict[str, nn.Module]:
    """Turns calls of `functional.dropout` and its like that follow the mode of the model into modules, so that they
    go on following it. The graph was traced in evaluation mode, so these are the ones with ``training=False``; those
    that are never to drop anything are gone.
    """
    modules: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if not _is_dropout(node):
            continue
        values = dict(zip(("input", "p", "training", "inplace"), node.args, strict=False)) | dict(node.kwargs)
        if values.get("training", True) is False:
            modules[node.name] = DROPOUTS[node.target](values.get("p", 0.5))
            node.op, node.target = "call_module", f"quantization.dropouts.{node.name}"
            node.args, node.kwargs = (values["input"],), {}
    return modules
