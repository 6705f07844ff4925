"""What a model does in training, where its graph is that of evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from edgeq.errors import TraceError
from edgeq.graph.trace import SCOPE


def in_both_modes(
    graph: fx.Graph, in_training: Callable[[], fx.Graph], is_wanted: Callable[[fx.Node], bool]
) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The calls of `graph` that are wanted, each with the same call in the graph that `in_training` gives of the model
    in training mode. It is asked only if there are any.

    Calls of one thing in one submodule are told apart by their order. Where there are more in one mode than in the
    other, or the model cannot be traced in training, there are no pairs.
    """
    calls = _by_place(graph, is_wanted)
    if not calls:
        return
    try:
        with torch.random.fork_rng(devices=()):
            others = _by_place(in_training(), is_wanted)
    except TraceError:
        return
    for place, nodes in calls.items():
        if len(nodes) == len(others[place]):
            yield from zip(nodes, others[place], strict=True)


def _by_place(graph: fx.Graph, is_wanted: Callable[[fx.Node], bool]) -> dict[Any, list[fx.Node]]:
    found: dict[Any, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if is_wanted(node):
            found[node.op, node.target, node.meta.get(SCOPE)].append(node)
    return found
