"""Weights and biases of functional layers that are computed from parameters and nothing else: a standardized weight,
a bias that is put together of three. Each becomes an attribute, so that the layer can be quantized.
"""

from __future__ import annotations

from torch import fx, nn

from edgeq.graph.conditions import PARAMETERS, argument
from edgeq.graph.operators import Behaviour, behaviour_of
from edgeq.graph.program import Program
from edgeq.graph.stored_weights import is_stored
from edgeq.graph.trace import SCOPE
from edgeq.modules.computed_parameter import ComputedParameter


def name_computed_parameters(graph: fx.Graph, root: nn.Module, layers: nn.ModuleDict, path: str) -> None:
    """Lets functional layers read attributes of modules in `layers`, which stands at `path` of `root`, instead of
    what the graph computes from parameters.
    """
    of_parameters: set[fx.Node] = set()
    for node in list(graph.nodes):
        inputs = node.all_input_nodes
        is_pure = node.op in ("call_function", "call_method") and inputs and not node.is_impure()
        if node.op == "get_attr" or (is_pure and all(source in of_parameters for source in inputs)):
            of_parameters.add(node)
        elif node.op == "call_function" and behaviour_of(node, None) is Behaviour.LAYER:
            for position, name in PARAMETERS:
                value = argument(node, position, name)
                if isinstance(value, fx.Node) and value in of_parameters and not is_stored(value):
                    key = f"{node.name}_{name}"
                    layers.add_module(key, _computed(value, root))
                    with graph.inserting_before(node):
                        attribute = graph.get_attr(f"{path}.{key}.value")
                    attribute.meta[SCOPE] = node.meta.get(SCOPE, "")
                    _give(node, position, name, attribute)


def _give(node: fx.Node, position: int, name: str, value: fx.Node) -> None:
    if len(node.args) > position:
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def _computed(value: fx.Node, root: nn.Module) -> ComputedParameter:
    """The computation of a node as a program over the attributes that it starts from."""
    needed = {value}
    for node in reversed(value.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    sources: list[tuple[nn.Module, str]] = []
    for node in (node for node in value.graph.nodes if node in needed):
        if node.op == "get_attr":
            made[node] = graph.placeholder(node.name)
            owner, _, name = str(node.target).rpartition(".")
            sources.append((root.get_submodule(owner), name))
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(made[value])
    return ComputedParameter(sources, Program(nn.Module(), graph))
