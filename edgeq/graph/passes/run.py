"""All rewrites of a graph, before it is annotated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from edgeq.graph.arguments import as_call, tried
from edgeq.graph.passes.changes import Changes
from edgeq.graph.passes.compare import Shapes, greatest_difference, in_evaluation
from edgeq.graph.passes.draft import Draft
from edgeq.graph.passes.registry import Wanted, wanted_rewrites
from edgeq.graph.places import check_rules, keep_places, places_of
from edgeq.graph.prepared import PreparedModule
from edgeq.spec import QConfig


def rewrite_graph(
    graph: fx.Graph, root: nn.Module, qconfig: QConfig, is_qat: bool, wanted: Wanted | None, example_inputs: Any
) -> tuple[Changes, Any]:
    """Runs the rewrites that are wanted over a graph and the tree of modules that it calls, in place. Each measures
    what it changes. The second result is what the network gave for the example inputs before; None without them.

    Raises SpecError for a name or an option that is unknown, for one that needs example inputs and has none, and
    for one that should keep the function and does not.
    """
    rewrites = wanted_rewrites(wanted)
    check_rules(places_of(graph, root), qconfig)
    keep_places(graph, root)
    with in_evaluation(root):
        before, shapes = (None, {}) if example_inputs is None else _run(graph, root, example_inputs)
        draft = Draft(graph, root, qconfig, is_qat, shapes)
        for rewrite, options in rewrites:
            draft.run(rewrite, options)
    return Changes(tuple(draft.changes)), before


@torch.no_grad()
def measure(network: PreparedModule, before: Any, example_inputs: Any) -> None:
    """Adds to the changes of a network what all of them together change in what it gives for example inputs: `before`
    against its float form, in which all is folded that will be.
    """
    if example_inputs is None or not network.changes.each:
        return
    args, kwargs = as_call(example_inputs, network.argument_names)
    with tried(example_inputs), same_numbers(network):
        after = network.run_float(*args, **kwargs)
    difference, size = greatest_difference(before, after)
    network.keep(changes=replace(network.changes, difference=difference, size=size))


@contextmanager
def same_numbers(root: nn.Module) -> Iterator[None]:
    """Random operations draw the same numbers each time, and others as if nothing had been drawn."""
    devices = {parameter.device for parameter in root.parameters()} - {torch.device("cpu")}
    kind = next((device.type for device in devices), "cuda")
    with torch.random.fork_rng([device.index or 0 for device in devices], device_type=kind):
        torch.manual_seed(0)
        yield


def _run(graph: fx.Graph, root: nn.Module, example_inputs: Any) -> tuple[Any, dict[fx.Node, torch.Size]]:
    """The outputs, and the shapes of all tensors on the way."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    args, kwargs = as_call(example_inputs, [str(node.target) for node in inputs])
    given = dict(zip((str(node.target) for node in inputs), args, strict=False)) | kwargs
    values = [given.get(str(node.target), *node.args[:1]) for node in inputs]
    shapes = Shapes(root, graph)
    with tried(example_inputs), same_numbers(root):
        return shapes.run(*values), shapes.of
