"""Where each operation of a graph is called, which is what the rules of a preset look at."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from edgeq.errors import SpecError, suggestion
from edgeq.graph.kinds import module_of
from edgeq.graph.operators import operator_of
from edgeq.graph.trace import SCOPE
from edgeq.spec import Place, QConfig, Rule

PLACE = "edgeq_place"  # key in a node's meta: the place that it was traced at, or of what a rewrite made it from


def node_name(node: fx.Node) -> str:
    """A node's name for the user: the module's path, or the operation's name within its module's path."""
    if PLACE in node.meta:
        return str(node.meta[PLACE].name)
    if node.op == "call_module" or node.op == "get_attr":
        return str(node.target)
    scope = node.meta.get(SCOPE, "")
    return f"{scope}.{node.name}" if scope else node.name


def keep_places(graph: fx.Graph, root: nn.Module) -> None:
    """Lets each node remember its place, so that rewrites of the graph do not change which rule decides about it."""
    for node, place in places_of(graph, root).items():
        node.meta[PLACE] = place


def places_of(graph: fx.Graph, root: nn.Module) -> dict[fx.Node, Place]:
    """Where each node of a graph is called, or was before rewrites."""
    calls: Counter[tuple[str, str]] = Counter()  # by scope and type
    around: dict[str, tuple[str, ...]] = {}  # by scope
    places = {}
    for node in graph.nodes:
        if PLACE in node.meta:
            places[node] = node.meta[PLACE]
            continue
        types = _types(node, root)
        scope = str(node.target).rpartition(".")[0] if node.op == "call_module" else node.meta.get(SCOPE, "")
        if scope not in around:
            around[scope] = _classes(scope, root)
        order = tuple(calls[scope, kind] for kind in types)
        places[node] = Place(node_name(node), types, scope, order, around[scope])
        calls.update((scope, kind) for kind in types if node.op.startswith("call"))
    return places


def _classes(scope: str, root: nn.Module) -> tuple[str, ...]:
    """The classes of the module at a path and of those that it is a part of, from the inside out."""
    modules = [root]
    for name in scope.split(".") if scope else []:
        modules.append(modules[-1].get_submodule(name))
    return tuple(type(module).__name__ for module in reversed(modules))


def _types(node: fx.Node, root: nn.Module) -> tuple[str, ...]:
    module = module_of(node, root)
    names = [operator_of(node, module).name]
    if module is not None:
        names.append(type_before_parametrizations(module).__name__)
    elif node.op.startswith("call"):
        names.append(str(getattr(node.target, "__name__", node.target)))
    return tuple(dict.fromkeys(names))


def check_rules(places: dict[fx.Node, Place], qconfig: QConfig) -> None:
    """Raises SpecError for a rule with a name that is nobody's: it would be ignored. Of a network that is a submodule
    of another, one for all of it, and more, may be meant for others.
    """
    called = {node: place for node, place in places.items() if node.op != "output"}
    for rule in qconfig.rules:
        is_wider = qconfig.origin.startswith(f"{rule.name}.") or (qconfig.origin and not rule.name)
        if rule.name is None or is_wider or any(qconfig.matches(rule, place) for place in called.values()):
            continue
        paths = [place.below(qconfig.origin).name.split(".") for place in called.values()]
        known = {".".join(path[:depth]) for path in paths for depth in range(1, len(path) + 1)}
        if rule.type is None or rule.name not in {*known, ""}:
            raise SpecError(f"The rule for {rule.subject} fits no layer of the model. {suggestion(rule.name, known)}")
        raise SpecError(
            f"The rule for {rule.subject} fits nothing that is called there. {_calls(places, qconfig, rule)}"
        )


def _calls(places: dict[fx.Node, Place], qconfig: QConfig, rule: Rule) -> str:
    """What is called in the module that a rule names, for messages."""
    called = [place.below(qconfig.origin) for node, place in places.items() if node.op.startswith("call")]
    calls = [place for place in called if rule.name in (place.scope, place.name, "")]
    counts = Counter(place.types[-1] for place in calls)
    return "It calls " + (", ".join(f"{kind} ({count})" for kind, count in counts.items()) or "nothing") + "."
