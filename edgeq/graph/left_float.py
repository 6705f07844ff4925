"""What a conversion leaves in float of a network that was prepared, and calibrated or trained, as a whole."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgeq.errors import SpecError
from edgeq.graph.kinds import module_of
from edgeq.graph.operators import Behaviour, behaviour_of
from edgeq.graph.prepared import PreparedModule
from edgeq.modules.layer import QuantizedLayer
from edgeq.modules.matmul import QuantizedMatmul
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.spec import QConfig

Node = Any  # torch.fx.Node: its arguments are typed too widely to be of use


def left_in_float(network: PreparedModule, qconfig: QConfig) -> set[str]:
    """The nodes that the rules of `qconfig`, settled for the network's backend, leave in float, and the quantizers
    of values that only those read. A rule speaks of a layer, or of another operation that gives a new value, with
    the batch norm and the activation that belong to it.

    Raises SpecError for a preset that quantizes anything in another way than the network was prepared for.
    """
    _require_same(network.qconfig, qconfig)
    floats = set()
    for node, place in network.places.items():
        rule = qconfig.rule_for(place)
        if rule is not None and not rule.quantize:
            floats.add(node)
    for graph_node in network.fx_graph.nodes:
        is_read_only = graph_node.name not in network.places and _is_quantizer(graph_node, network)
        if floats and is_read_only and not any(reads_codes(user, network, floats) for user in graph_node.users):
            floats.add(graph_node.name)
    return floats


def _require_same(prepared: QConfig, asked: QConfig) -> None:
    """A rule that leaves nothing in float must be one of those that the network was prepared with, and what holds
    where there is no rule must be the same; unless all the rest is left in float, so that the rules only except.
    """
    everything = any(rule.type == "*" and not rule.quantize for rule in asked.rules)
    same, plain = (dataclasses.replace(qconfig, rules=(), name="", summary="") for qconfig in (prepared, asked))
    other = [rule for rule in asked.rules if rule.quantize and rule not in prepared.rules]
    if not everything and (other or same != plain):
        what = f"the rule for {other[0].subject}" if other else f"the preset {asked.name!r}"
        raise SpecError(
            f"A conversion can leave layers in float, it cannot quantize them in another way, but {what} is not what "
            "the network was prepared with: pass the mapping of the preparation, with None for what is to stay float."
        )


def _is_quantizer(node: Node, network: PreparedModule) -> bool:
    return isinstance(module_of(node, network), TensorQuantizer)


def reads_codes(node: Node, network: PreparedModule, floats: set[str]) -> bool:
    """Whether a reader of a value wants its integers, when `floats` stay float: it computes with them, or hands them on
    to who does.
    """
    module = module_of(node, network)
    if node.name in floats or node.op == "output" or isinstance(module, TensorQuantizer):
        return False
    if isinstance(module, QuantizedLayer | QuantizedMatmul):
        return True
    if behaviour_of(node, module) in (Behaviour.SHARE, Behaviour.CLIP):
        return any(reads_codes(user, network, floats) for user in node.users)
    quantizers = [user for user in node.users if _is_quantizer(user, network)]
    return any(quantizer.name not in floats for quantizer in quantizers)
