"""A user's model as a graph, whichever way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from edgeq.errors import SpecError, TraceError
from edgeq.graph.functional_norms import note_live_norms
from edgeq.graph.no_grad import keep_if_in_training
from edgeq.graph.rewrite import drop_constant_dropouts
from edgeq.graph.trace import trace

logger = logging.getLogger(__name__)


def capture(model: nn.Module, untraced: Iterable[str | type[nn.Module]] = (), example_inputs: Any = None) -> fx.Graph:
    """The graph of `model` by symbolic tracing, which follows every size and needs no inputs; through torch.export,
    which takes the branches where `example_inputs` lead, where that fails.

    Raises TraceError, which says why neither can be, and SpecError for a model that has not made its parameters yet.
    """
    _require_shapes(model)
    leaves = tuple(untraced)
    try:
        graph = trace(model, leaves, example_inputs)
        if not isinstance(model, fx.GraphModule):
            in_training = cache(lambda: trace(model, leaves, example_inputs, training=True))
            drop_constant_dropouts(graph, in_training)
            note_live_norms(graph, in_training)
            keep_if_in_training(graph, in_training)
            _tell_of_training_only(model, graph, in_training)
        return graph
    except TraceError as error:
        if example_inputs is None:
            raise
        reason = error
    from edgeq.graph.exported import trace_exported

    try:
        graph = trace_exported(model, leaves, example_inputs)
    except TraceError as error:
        raise TraceError(f"{reason}\n{error}") from error
    logger.info("%s is captured as example_inputs run through it. %s", type(model).__name__, reason)
    return graph


def _require_shapes(model: nn.Module) -> None:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise SpecError(
            f"{type(model).__name__} has parameters without a shape: {', '.join(lazy)}. Lazy modules learn theirs from "
            "the first batch: run one through the float model before it is wrapped."
        )


def _tell_of_training_only(model: nn.Module, graph: fx.Graph, in_training: Callable[[], fx.Graph]) -> None:
    """Warns of submodules with parameters that the forward calls in training alone, such as auxiliary classifiers:
    the graph is that of evaluation.
    """
    parts = {path for path, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None}
    left = parts - _reached(graph)
    if not left:
        return
    try:
        with torch.random.fork_rng(devices=()):
            found = sorted(left & _reached(in_training()))
    except TraceError:
        return
    if found:
        logger.warning(
            "%s runs %s in training only. Its graph is that of evaluation, in which they have no part and are not "
            "trained. To keep them, quantize the rest by itself: submodules=[name, ...].",
            *(type(model).__name__, ", ".join(found)),
        )


def _reached(graph: fx.Graph) -> set[str]:
    """The paths of the modules that a graph calls, or whose attributes it reads."""
    calls = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    return calls | {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
