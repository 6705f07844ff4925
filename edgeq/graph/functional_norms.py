"""Batch norms that are called as functions, ``F.batch_norm(x, ..., training=self.training)``, follow the mode.

A graph is traced in evaluation mode, where such a call uses the running statistics, and would go on doing so while
the network is trained. As a module over the user's own tensors it trains as it does in the user's program, and is
folded into the layer in front of it as any batch norm is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn import functional

from edgeq.errors import TraceError
from edgeq.graph.conditions import argument
from edgeq.graph.modes import in_both_modes
from edgeq.graph.places import PLACE, places_of
from edgeq.modules.functional_norm import TENSORS, FrozenNorm, FunctionalNorm

IN_TRAINING = "edgeq_in_training"  # key in a node's meta: the arguments of the call when the model trains
NORMS: dict[Any, tuple[int, str, bool]] = {  # of each function: what says whether the batch's statistics are used
    functional.batch_norm: (5, "training", False),
    functional.instance_norm: (5, "use_input_stats", True),
}


def note_live_norms(graph: fx.Graph, in_training: Callable[[], fx.Graph]) -> None:
    """Notes what the norms of `graph`, traced in evaluation mode, are told in training. `in_training` gives the graph
    of the model in that mode; it is called only if there are any norms that are functions.
    """
    for node, other in in_both_modes(graph, in_training, _is_norm):
        node.meta[IN_TRAINING] = _uses_batch(other), argument(other, 6, "momentum", 0.1)


def _is_norm(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in NORMS


def _uses_batch(node: fx.Node) -> Any:
    position, name, default = NORMS[node.target]
    return argument(node, position, name, default)


def norm_modules(graph: fx.Graph, root: nn.Module, is_qat: bool) -> dict[str, nn.Module]:
    """Turns the norms that use running statistics in evaluation into modules, by name. `root` is what the graph runs
    over.

    Raises TraceError where a network that is trained would not learn what the user's program does: a norm whose weight
    is computed, or that takes the statistics of each item.
    """
    nodes = [node for node in graph.nodes if _is_norm(node) and _uses_batch(node) is False]
    places = places_of(graph, root) if nodes else {}
    modules: dict[str, nn.Module] = {}
    for node in nodes:
        stored = {name: _stored(argument(node, at, name), root) for at, name in enumerate(TENSORS, 1)}
        is_live, momentum = node.meta.get(IN_TRAINING) or (_learns(stored), argument(node, 6, "momentum", 0.1))
        if node.target is functional.batch_norm and NotImplemented not in stored.values():
            cls = FunctionalNorm if is_live else FrozenNorm
            modules[node.name] = cls(stored, momentum, argument(node, 7, "eps", 1e-5))
            node.meta[PLACE] = places[node]
            node.op, node.target = "call_module", f"quantization.norms.{node.name}"
            node.args, node.kwargs = (argument(node, 0, "input"),), {}
        elif is_live and is_qat:
            function: Any = node.target
            raise TraceError(
                f"{places[node].name!r} is a call of functional.{function.__name__} that uses the statistics of the "
                "batch in training, and either it is no batch norm or its weight is computed: as a part of a graph it "
                "would always use the running ones. Write it as a module of torch.nn, or keep the module around it in "
                f"float with untraced=[{places[node].scope!r}]."
            )
    return modules


def _stored(node: Any, root: nn.Module) -> Any:
    """Where a tensor is kept: the module and the name. NotImplemented for one that is computed."""
    if node is None:
        return None
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return NotImplemented
    path, _, name = str(node.target).rpartition(".")
    return root.get_submodule(path), name


def _learns(stored: dict[str, Any]) -> bool:
    """Whether the statistics are likely to be updated in training, where that cannot be seen: those of a batch norm of
    the user's own class are, and those beside a weight that is a parameter.
    """
    mean, weight = stored["running_mean"], stored["weight"]
    keeper = mean[0] if isinstance(mean, tuple) else None
    is_parameter = isinstance(weight, tuple) and isinstance(getattr(*weight), nn.Parameter)
    return isinstance(keeper, nn.modules.batchnorm._BatchNorm) or is_parameter
