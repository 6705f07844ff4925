"""Decides which tensor is quantized, how, and why, before anything is changed.

The result can be printed (`explain`) and compared with a golden file; preparation only carries it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from torch import fx, nn

from edgeq.graph.divisors import divisors
from edgeq.graph.fuse import Chain, chains
from edgeq.graph.kinds import floating_nodes, module_of, table_of
from edgeq.graph.marks import marked
from edgeq.graph.operators import MEANS, Behaviour, Operator, behaviour_of, data_inputs, operator_of
from edgeq.graph.places import check_rules, node_name, places_of
from edgeq.graph.positions import positions
from edgeq.graph.program import Program
from edgeq.graph.region import outside_of_region
from edgeq.graph.stored_weights import has_stored_weight, spec_of_moved_codes, stored_weights
from edgeq.graph.tuples import gives_tuple
from edgeq.modules.norm_strategies import NORM_STRATEGIES
from edgeq.spec import Place, QConfig, Rule, TensorSpec

COMPUTING = (Behaviour.LAYER, Behaviour.MATMUL, Behaviour.OWN, Behaviour.STORED, Behaviour.FIXED)


@dataclass
class Group:
    """Tensors that share one range. `members` are nodes of the graph, `producers` those of them where values
    are made rather than moved, and so where the quantizer stands. `table` is a look-up in the table whose range it
    is, if it is one.
    """

    name: str
    spec: TensorSpec
    members: list[fx.Node]
    producers: list[fx.Node]
    fixed: tuple[float, float] | None = None
    table: fx.Node | None = None


@dataclass
class Annotation:
    """What is to be done with a graph. `weights` has the layers whose weights become integers; `tables` those of them
    that look up rows and move their codes.
    """

    groups: list[Group] = field(default_factory=list)
    chains: dict[fx.Node, Chain] = field(default_factory=dict)
    weights: dict[fx.Node, TensorSpec] = field(default_factory=dict)
    tables: dict[fx.Node, TensorSpec] = field(default_factory=dict)
    group_of: dict[fx.Node, Group] = field(default_factory=dict)
    reasons: dict[fx.Node, str] = field(default_factory=dict)
    places: dict[fx.Node, Place] = field(default_factory=dict)
    rules: dict[fx.Node, Rule | None] = field(default_factory=dict)


def annotate(graph: fx.Graph, root: nn.Module, qconfig: QConfig) -> Annotation:
    """The annotation of a rewritten graph under `qconfig`, in which the backend's rules are already settled."""
    places = places_of(graph, root)
    check_rules(places, qconfig)
    rules = {node: qconfig.rule_for(place) for node, place in places.items()}
    floating = floating_nodes(graph, root)
    outside = outside_of_region(graph, root)
    marks = marked(graph, root) | divisors(graph, root) | positions(graph, root)
    floats = {node for node in floating if node in outside or node in marks or stays_float(node, root, rules[node])}
    folds_norms = NORM_STRATEGIES[qconfig.batch_norm].folds
    found = chains(graph, root, floats | (set(graph.nodes) - floating), folds_norms)
    annotation = Annotation(chains=found, places=places, rules=rules)
    for node in floats:
        where = "stays float: outside of the region that stubs mark"
        annotation.reasons[node] = where if node in outside else _float_reason(node, root, rules[node], marks)
    for node in graph.nodes:
        if node.op.startswith("call") and node not in floating:
            annotation.reasons[node] = "never touched: no floating tensor"
    quantized = _Reach(graph, root, floating, floats, set(marks), annotation).quantized()
    _weight_specs(graph, root, qconfig, annotation)
    _stored_weights(graph, root, qconfig, floats, annotation)
    _group(graph, root, quantized, qconfig, annotation)
    return annotation


def stays_float(node: fx.Node, root: nn.Module, rule: Rule | None) -> bool:
    """Whether an operation is computed in float by itself or by the rule that decides about it."""
    if not node.op.startswith("call"):
        return False
    behaviour = behaviour_of(node, module_of(node, root))
    if behaviour in (Behaviour.LAYER, Behaviour.STORED) and not has_stored_weight(node):
        return True
    return behaviour is Behaviour.FLOAT or (rule is not None and (rule.weight_only or not rule.quantize))


def _float_reason(node: fx.Node, root: nn.Module, rule: Rule | None, marks: dict[fx.Node, str]) -> str:
    row: Operator = operator_of(node, module_of(node, root))
    if rule is not None and not rule.quantize:
        return f"stays float by the rule for {rule.subject}"
    if rule is not None and rule.weight_only:
        return f"stays float by the rule for {rule.subject}, which leaves integers to weights only"
    if behaviour_of(node, module_of(node, root)) in (Behaviour.LAYER, Behaviour.STORED):
        return "stays float: its weight is computed, not stored"
    if isinstance(module_of(node, root), Program):
        return "stays float: it is quantized by itself"
    by_itself = row.behaviour is Behaviour.FLOAT and node.op.startswith("call")
    return f"stays float: {row.note if by_itself else marks.get(node, row.note)}"


class _Reach:
    """Finds the values that are quantized: those that quantized operations read and write, and what is only
    moved on from there.
    """

    def __init__(
        self,
        graph: fx.Graph,
        root: nn.Module,
        floating: set[fx.Node],
        floats: set[fx.Node],
        marks: set[fx.Node],
        annotation: Annotation,
    ) -> None:
        self.floats = floats
        self.tails = {chain.tail for chain in annotation.chains.values()}
        parts = {part for chain in annotation.chains.values() for part in chain.nodes}
        self.hidden = parts - self.tails | {node for node in graph.nodes if gives_tuple(module_of(node, root))}
        self.computing: set[fx.Node] = set()
        self.movers: set[fx.Node] = set()
        self.splits: set[fx.Node] = set()
        self.reads: dict[fx.Node, list[fx.Node]] = {}
        for node in graph.nodes:
            module = module_of(node, root)
            if node not in floating or node in floats or not node.op.startswith("call"):
                continue
            behaviour = behaviour_of(node, module)
            sources = [source for source in data_inputs(node, module) if source in floating]
            self.reads[node] = [source for source in sources if source not in self.hidden]
            if behaviour in COMPUTING or node in annotation.chains:
                self.computing.add(node)
                if behaviour not in (Behaviour.LAYER, Behaviour.MATMUL):
                    self.reads[node] = [source for source in self.reads[node] if source not in marks]
            elif node not in self.tails:
                self.movers.add(node)
            if operator_of(node, module).name == "split":
                self.splits.add(node)

    def quantized(self) -> set[fx.Node]:
        """Follows each value once: a reader asks for what it reads, a moved value follows its source."""
        moved_by: dict[fx.Node, list[fx.Node]] = {}
        for mover in self.movers:
            for source in self.reads[mover]:
                moved_by.setdefault(source, []).append(mover)
        found: set[fx.Node] = set()
        pending = [*self.tails, *(self.computing - self.hidden)]
        pending += [source for node in self.computing for source in self.reads[node]]
        while pending:
            node = pending.pop()
            if node in found:
                continue
            found.add(node)
            if self._asks(node):
                pending += self.reads[node]
            pending += [mover for mover in moved_by.get(node, ()) if found.issuperset(self.reads[mover])]
        return found

    def _asks(self, node: fx.Node) -> bool:
        """Whether a node moves values that are to be quantized before they are moved."""
        if node not in self.movers:
            return False
        sources = self.reads[node]  # a split's parts have one quantizer, which cannot stand behind a tuple
        return node in self.splits or len(sources) != 1 or sources[0] not in self.floats


def _group(graph: fx.Graph, root: nn.Module, quantized: set[fx.Node], qconfig: QConfig, annotation: Annotation) -> None:
    """Joins each mover with what it moves, and gives every group its spec."""
    parent: dict[fx.Node, fx.Node] = {node: node for node in quantized}

    def find(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            parent[node] = node = parent[parent[node]]  # halves the way for the next to come
        return node

    def joins_a_mean(sources: list[fx.Node]) -> bool:
        found = {find(source) for source in sources}
        return len(found) > 1 and any(
            find(mean) in found and find(source) in found - {find(mean)} for mean, source in means
        )

    producers: set[fx.Node] = set()
    means: list[tuple[fx.Node, fx.Node]] = []  # with what each is taken of
    known: dict[fx.Node, Hashable] = {}  # the ranges of groups that are known beforehand, or their tables
    look_ups: dict[Hashable, fx.Node] = {}  # the first in each table
    tails = {chain.tail for chain in annotation.chains.values()}
    for node in graph.nodes:
        if node not in quantized:
            continue
        if operator_of(node, module_of(node, root)).name in MEANS:
            means += [(node, source) for source in data_inputs(node, module_of(node, root)) if source in quantized]
        if node in tails or node in annotation.reasons or not node.op.startswith("call"):
            producers.add(node)
            continue
        module = module_of(node, root)
        sources = [source for source in data_inputs(node, module) if source in quantized]
        is_fixed = behaviour_of(node, module) is Behaviour.FIXED
        if is_fixed:
            known[node] = operator_of(node, module).range
        if node in annotation.tables:
            known[node] = table_of(node, root), annotation.tables[node]
            parent[node] = look_ups.setdefault(known[node], node)
        # A known range is not given up for a concatenation with others: runtimes compute a softmax for it alone. And
        # a mean at the scale of what it is taken of has ties all over, which runtimes round in their own ways.
        mixed = len({known.get(find(source)) for source in sources}) > 1
        if is_fixed or not sources or mixed or joins_a_mean(sources):
            producers.add(node)
            continue
        for source in sources:
            parent[find(node)] = find(source)
    order = {node: index for index, node in enumerate(graph.nodes)}
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in sorted(quantized, key=order.__getitem__):
        members.setdefault(find(node), []).append(node)
    names = _Names()
    heads = {chain.tail: chain.head for chain in annotation.chains.values()}
    for nodes in members.values():
        makers = [node for node in nodes if node in producers]
        group = _make_group(names, nodes, makers, [heads.get(node, node) for node in makers], root, qconfig, annotation)
        annotation.groups.append(group)
        annotation.group_of.update(dict.fromkeys(nodes, group))


class _Names:
    """Unique names for quantizers: that of the module or node which makes the tensor."""

    def __init__(self) -> None:
        self.taken: set[str] = set(dir(nn.ModuleDict()))  # where quantizers are kept: "keys" and "to" are its methods
        self.numbers: Counter[str] = Counter()

    def unique(self, node: fx.Node) -> str:
        base = name = node_name(node).replace(".", "_")
        while name in self.taken:
            self.numbers[base] += 1
            name = f"{base}_{self.numbers[base]}"
        self.taken.add(name)
        return name


def _make_group(
    names: _Names,
    nodes: list[fx.Node],
    makers: list[fx.Node],
    heads: list[fx.Node],
    root: nn.Module,
    qconfig: QConfig,
    annotation: Annotation,
) -> Group:
    spec, table = qconfig.activation, next((head for head in heads if head in annotation.tables), None)
    for head in heads:
        rule = annotation.rules[head]
        if rule is not None and rule.activation is not None:
            spec = rule.activation
    if qconfig.edges is not None and any(head.op == "placeholder" for head in heads):
        spec = qconfig.edges.activation
    ranges = {operator_of(head, module_of(head, root)).range for head in heads}
    fixed = ranges.pop() if len(ranges) == 1 and spec.fixed_range is None else None
    spec = spec if table is None else annotation.tables[table]
    return Group(names.unique(heads[0]), spec, nodes, makers, fixed, table)


def _weight_specs(graph: fx.Graph, root: nn.Module, qconfig: QConfig, annotation: Annotation) -> None:
    layers = [
        node
        for node in graph.nodes
        if node in annotation.chains and behaviour_of(node, module_of(node, root)) is Behaviour.LAYER
    ]
    for node in layers:
        rule = annotation.rules[node]
        annotation.weights[node] = rule.weight if rule is not None and rule.weight is not None else qconfig.weight
    if qconfig.edges is not None:
        for node in _edges(layers, annotation.places):
            annotation.weights[node] = qconfig.edges.weight


def _stored_weights(
    graph: fx.Graph, root: nn.Module, qconfig: QConfig, floats: set[fx.Node], annotation: Annotation
) -> None:
    for node, weight in stored_weights(graph, root, qconfig, annotation.places, floats).items():
        module = module_of(node, root)
        annotation.weights[node] = weight
        if node in floats:
            continue
        spec = spec_of_moved_codes(node, module, weight, annotation.rules[node], qconfig)
        if spec is not None:
            annotation.tables[node] = spec
        elif gives_tuple(module):
            annotation.reasons[node] = operator_of(node, module).note


def _edges(layers: list[fx.Node], places: dict[fx.Node, Place]) -> Iterable[fx.Node]:
    """The first convolution and the last linear layer of the user's."""
    names = [places[node].types[0] for node in layers]
    if "conv" in names:
        yield layers[names.index("conv")]
    if "linear" in names:
        yield layers[len(names) - 1 - names[::-1].index("linear")]
