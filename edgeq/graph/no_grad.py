"""What a forward computes under `torch.no_grad()` takes no gradient in a network that is trained either.

Tracing runs through such a region and sees nothing of it: the parameters inside, of a backbone that is kept as it is,
would be trained.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

from torch import fx, nn

from edgeq.graph.kinds import floating_nodes, module_of
from edgeq.graph.modes import in_both_modes
from edgeq.graph.operators import operator_of
from edgeq.graph.part import part
from edgeq.graph.trace import NO_GRAD, SCOPE

PICKS = (operator.getitem, getattr, part)  # what they give lies in the region of what they are given
SEVERAL = ("split", "with_places", "moments")  # rows of operations that give a tuple, which has no gradient to stop


def keep_if_in_training(graph: fx.Graph, in_training: Callable[[], fx.Graph]) -> None:
    """Leaves the mark `NO_GRAD` to those nodes of `graph`, traced in evaluation mode, that have it in training as well:
    under ``torch.set_grad_enabled(self.training)`` none do.
    """
    marked = [node for node in graph.nodes if NO_GRAD in node.meta]
    if not marked:
        return
    pairs = in_both_modes(graph, in_training, lambda node: node.op.startswith("call"))
    without = {node for node, other in pairs if NO_GRAD in other.meta}
    for node in marked:
        if node not in without:
            del node.meta[NO_GRAD]


def stop_gradients(graph: fx.Graph, root: nn.Module) -> None:
    """Detaches, in place, what leaves a region without gradients."""
    region: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op.startswith("call") and (NO_GRAD in node.meta or (node.target in PICKS and node.args[0] in region)):
            region.add(node)
    floating = floating_nodes(graph, root) if region else set()
    for node in region & floating:
        readers = [user for user in node.users if user not in region]
        if readers and operator_of(node, module_of(node, root)).name not in SEVERAL:
            with graph.inserting_after(node):
                detached = graph.call_method("detach", (node,))
            detached.meta[SCOPE] = node.meta.get(SCOPE, "")
            for reader in readers:
                reader.replace_input_with(node, detached)
