"""Weights that can be kept as integers, and the specs of those that are only kept so, and computed with in float."""

from __future__ import annotations

import dataclasses
import operator

from torch import fx, nn

from edgeq.errors import SpecError
from edgeq.graph.conditions import argument
from edgeq.graph.kinds import module_of
from edgeq.graph.operators import Behaviour, behaviour_of, operator_of
from edgeq.spec import Granularity, Place, QConfig, Rule, ScaleKind, TensorSpec


def has_stored_weight(node: fx.Node) -> bool:
    """Whether the weight of a layer is an attribute; only a function that is called with it may have computed it."""
    if node.op == "call_module":
        return True
    weight = argument(node, 1, "weight")
    if operator_of(node, None).behaviour is Behaviour.STORED:
        return isinstance(weight, fx.Node) and (weight.op == "get_attr" or _is_part(weight))
    parameters = (weight, argument(node, 2, "bias"))
    return all(isinstance(value, fx.Node) and is_stored(value) for value in parameters if value is not None)


def is_stored(node: fx.Node) -> bool:
    """Whether a value is an attribute of the model, some rows of one, or one transposed."""
    if node.op == "call_method" and node.target == "t":
        node = node.args[0]  # type: ignore[assignment]
    return node.op == "get_attr" or _is_part(node)


def _is_part(node: fx.Node) -> bool:
    is_slice = node.target is operator.getitem and isinstance(node.args[1], slice)
    return is_slice and node.args[0].op == "get_attr"  # type: ignore[union-attr]


def stored_weights(
    graph: fx.Graph, root: nn.Module, qconfig: QConfig, places: dict[fx.Node, Place], floats: set[fx.Node]
) -> dict[fx.Node, TensorSpec]:
    """The specs of the weights of look-ups and recurrent layers, all but those of `floats` without a rule for just
    the weights.

    Raises SpecError for such a rule for a layer that computes in integers, or such a preset for all of a network.
    """
    if qconfig.weight_only:
        raise SpecError(f"The preset {qconfig.name!r} has weight_only: it is for single layers, in a QConfigMapping.")
    found: dict[fx.Node, TensorSpec] = {}
    for node in graph.nodes:
        if not node.op.startswith("call"):
            continue
        rule, behaviour = qconfig.rule_for(places[node]), behaviour_of(node, module_of(node, root))
        if rule is not None and rule.weight_only and behaviour is Behaviour.LAYER:
            raise SpecError(
                f"The rule for {rule.subject} leaves integers to weights only, which embeddings and recurrent layers "
                f"can do; {places[node].name!r} ({places[node].types[0]}) computes in integers."
            )
        keeps = node not in floats or (rule is not None and rule.weight_only)
        if behaviour is Behaviour.STORED and keeps and has_stored_weight(node):
            found[node] = rule.weight if rule is not None and rule.weight is not None else qconfig.weight
    return found


def spec_of_moved_codes(
    node: fx.Node, module: nn.Module | None, weight: TensorSpec, rule: Rule | None, qconfig: QConfig
) -> TensorSpec | None:
    """The spec of what a look-up gives, if that is the codes of a table with one scale: the table's, as far as an
    activation may have it. None for one that gives real numbers.
    """
    if operator_of(node, module).name != "embedding" or weight.granularity is Granularity.CHANNEL:
        return None
    activation = rule.activation if rule is not None and rule.activation is not None else qconfig.activation
    scale = ScaleKind.POWER_OF_TWO if activation.scale is ScaleKind.POWER_OF_TWO else weight.scale
    bits = min(weight.bits, activation.bits)
    return dataclasses.replace(weight, bits=bits, scale=scale, reduce_range=activation.reduce_range)
