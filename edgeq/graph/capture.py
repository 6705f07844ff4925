"""A user's model as a graph, whichever way."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from edgeq.errors import TraceError
from edgeq.graph.rewrite import drop_constant_dropouts
from edgeq.graph.trace import trace

logger = logging.getLogger(__name__)


def capture(model: nn.Module, untraced: Iterable[str | type[nn.Module]] = (), example_inputs: Any = None) -> fx.Graph:
    """The graph of `model` by symbolic tracing, which follows every size and needs no inputs; through torch.export,
    which takes the branches where `example_inputs` lead, where that fails.

    Raises TraceError, which says why neither can be.
    """
    leaves = tuple(untraced)
    try:
        graph = trace(model, leaves, example_inputs)
        if not isinstance(model, fx.GraphModule):
            drop_constant_dropouts(graph, lambda: trace(model, leaves, example_inputs, training=True))
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
