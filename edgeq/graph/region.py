"""The part of a graph that stubs mark."""

from __future__ import annotations

from torch import fx, nn

from edgeq.graph.kinds import module_of
from edgeq.modules.stubs import DeQuantStub, QuantStub


def outside_of_region(graph: fx.Graph, root: nn.Module) -> set[fx.Node]:
    """The nodes that stubs exclude from quantization: those that no QuantStub leads to without a DeQuantStub in
    between. Empty for a graph without a QuantStub, in which all may be quantized.
    """
    inside: set[fx.Node] = set()
    marked = False
    for node in graph.nodes:
        module = module_of(node, root)
        if isinstance(module, QuantStub):
            marked = True
            inside.add(node)
        elif not isinstance(module, DeQuantStub) and any(source in inside for source in node.all_input_nodes):
            inside.add(node)
    return {node for node in graph.nodes if node not in inside} if marked else set()
