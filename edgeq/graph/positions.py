"""What is made of sizes and constants alone: the coordinates of a grid, the angles of rotary positions.

For these steps of 8 bits are too coarse: a position times a frequency loses its place. They are computed in float;
only what comes out, where data meet it, is quantized like any constant.
"""

from __future__ import annotations

from torch import fx, nn

from edgeq.graph.kinds import attribute, module_of
from edgeq.graph.operators import Behaviour, behaviour_of, operator_of

POSITION = "it is made of sizes and constants alone, as positions are: steps of 8 bits are too coarse for it"


def positions(graph: fx.Graph, root: nn.Module) -> dict[fx.Node, str]:
    """The nodes of `graph` that are made of sizes, and perhaps constants, and that only such nodes read, each with the
    reason why it stays float. A quantizer has no place there, nor has anything that is trained.
    """
    made: set[fx.Node] = set()
    of_sizes: set[fx.Node] = set()
    for node in graph.nodes:
        if _asks_for_size(node, root):
            made.add(node)
            of_sizes.add(node)
        elif _is_constant(node, root) or (_is_plain_call(node, root) and made.issuperset(node.all_input_nodes)):
            made.add(node)
            if not of_sizes.isdisjoint(node.all_input_nodes):
                of_sizes.add(node)
    inner = {node for node in of_sizes if node.users and made.issuperset(node.users)}
    return dict.fromkeys(inner, POSITION)


def _asks_for_size(node: fx.Node, root: nn.Module) -> bool:
    module = module_of(node, root)
    return operator_of(node, module).name in ("size", "attribute") and behaviour_of(node, module) is Behaviour.PLAIN


def _is_constant(node: fx.Node, root: nn.Module) -> bool:
    return node.op == "get_attr" and not isinstance(attribute(root, str(node.target)), nn.Parameter)


def _is_plain_call(node: fx.Node, root: nn.Module) -> bool:
    """Whether nothing that is trained, or drawn, takes part in a call."""
    module = module_of(node, root)
    is_trained = module is not None and any(True for _ in module.parameters())
    return node.op.startswith("call") and not is_trained and operator_of(node, module).name != "random"
