"""Decides which tensor is quantized, how, and why, before anything is changed.

The result can be printed (`explain`) and compared with a golden file; preparation only carries it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import fx, nn

from edgeq.errors import SpecError, suggestion
from edgeq.graph.fuse import Chain, chains
from edgeq.graph.kinds import floating_nodes, module_of
from edgeq.graph.operators import Behaviour, Operator, behaviour_of, data_inputs, marks, operator_of
from edgeq.graph.region import outside_of_region
from edgeq.graph.trace import SCOPE
from edgeq.spec import QConfig, TensorSpec

COMPUTING = (Behaviour.LAYER, Behaviour.MATMUL, Behaviour.OWN, Behaviour.FIXED)


@dataclass
class Group:
    """Tensors that share one range. `members` are nodes of the graph, `producers` those of them where values
    are made rather than moved, and so where the quantizer stands.
    """

    name: str
    spec: TensorSpec
    members: list[fx.Node]
    producers: list[fx.Node]
    fixed: tuple[float, float] | None = None


@dataclass
class Annotation:
    """What is to be done with a graph."""

    groups: list[Group] = field(default_factory=list)
    chains: dict[fx.Node, Chain] = field(default_factory=dict)
    weights: dict[fx.Node, TensorSpec] = field(default_factory=dict)
    group_of: dict[fx.Node, Group] = field(default_factory=dict)
    reasons: dict[fx.Node, str] = field(default_factory=dict)


def node_name(node: fx.Node) -> str:
    """A node's name for the user: the module's path, or the operation's name within its module's path."""
    if node.op == "call_module" or node.op == "get_attr":
        return str(node.target)
    scope = node.meta.get(SCOPE, "")
    return f"{scope}.{node.name}" if scope else node.name


def annotate(graph: fx.Graph, root: nn.Module, qconfig: QConfig) -> Annotation:
    """The annotation of a rewritten graph under `qconfig`, in which the backend's rules are already settled."""
    _check_names(graph, qconfig)
    floating = floating_nodes(graph, root)
    outside = outside_of_region(graph, root)
    floats = {node for node in floating if node in outside or _stays_float(node, root, qconfig)}
    annotation = Annotation(chains=chains(graph, root, floats | (set(graph.nodes) - floating)))
    for node in floats:
        where = "stays float: outside of the region that stubs mark"
        annotation.reasons[node] = where if node in outside else _float_reason(node, root, qconfig)
    for node in graph.nodes:
        if node.op.startswith("call") and node not in floating:
            annotation.reasons[node] = "never touched: no floating tensor"
    quantized = _Reach(graph, root, floating, floats, annotation).quantized()
    _group(graph, root, quantized, qconfig, annotation)
    _weight_specs(graph, root, qconfig, annotation)
    return annotation


def _check_names(graph: fx.Graph, qconfig: QConfig) -> None:
    """Raises SpecError for a rule by name that is nobody's: it would be ignored."""
    paths = [node_name(node).split(".") for node in graph.nodes if node.op != "output"]
    known = {".".join(path[:depth]) for path in paths for depth in range(1, len(path) + 1)}
    for rule in qconfig.rules:
        if rule.name is not None and rule.name not in known:
            raise SpecError(f"The rule for {rule.name!r} fits no layer of the model. {suggestion(rule.name, known)}")


def _types(node: fx.Node, root: nn.Module) -> tuple[str, ...]:
    module = module_of(node, root)
    names = [operator_of(node, module).name]
    if module is not None:
        names.append(type(module).__name__)
    elif node.op.startswith("call"):
        names.append(str(getattr(node.target, "__name__", node.target)))
    return tuple(names)


def _stays_float(node: fx.Node, root: nn.Module, qconfig: QConfig) -> bool:
    if not node.op.startswith("call"):
        return False
    module = module_of(node, root)
    if behaviour_of(node, module) is Behaviour.LAYER and module is None and not _has_attribute_weight(node):
        return True
    rule = qconfig.rule_for(node_name(node), _types(node, root))
    return behaviour_of(node, module) is Behaviour.FLOAT or (rule is not None and not rule.quantize)


def _has_attribute_weight(node: fx.Node) -> bool:
    """Whether the weight of a functional layer is an attribute, so that it can be kept as integers."""
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return all(isinstance(value, fx.Node) and value.op == "get_attr" for value in (weight, bias) if value is not None)


def _float_reason(node: fx.Node, root: nn.Module, qconfig: QConfig) -> str:
    row: Operator = operator_of(node, module_of(node, root))
    rule = qconfig.rule_for(node_name(node), _types(node, root))
    if rule is not None and not rule.quantize:
        return f"stays float by the rule for {rule.name or rule.pattern or rule.type!r}"
    if row.behaviour is Behaviour.LAYER:
        return "stays float: its weight is computed, not stored"
    return f"stays float: {row.note}"


class _Reach:
    """Finds the values that are quantized: those that quantized operations read and write, and what is only
    moved on from there.
    """

    def __init__(
        self, graph: fx.Graph, root: nn.Module, floating: set[fx.Node], floats: set[fx.Node], annotation: Annotation
    ) -> None:
        self.floats = floats
        self.tails = {chain.tail for chain in annotation.chains.values()}
        parts = {part for chain in annotation.chains.values() for part in (chain.head, chain.norm, chain.clip)}
        self.hidden = parts - self.tails
        self.computing: set[fx.Node] = set()
        self.movers: set[fx.Node] = set()
        self.splits: set[fx.Node] = set()
        self.reads: dict[fx.Node, list[fx.Node]] = {}
        marked: set[fx.Node] = set()  # values with marks among them, which nothing but a layer asks to be quantized
        for node in graph.nodes:
            module = module_of(node, root)
            if node in floating and marks(node, module):
                marked.add(node)
            if node not in floating or node in floats or not node.op.startswith("call"):
                continue
            behaviour = behaviour_of(node, module)
            sources = [source for source in data_inputs(node, module) if source in floating]
            self.reads[node] = [source for source in sources if source not in self.hidden]
            if behaviour in COMPUTING or node in annotation.chains:
                self.computing.add(node)
                if behaviour not in (Behaviour.LAYER, Behaviour.MATMUL):
                    self.reads[node] = [source for source in self.reads[node] if source not in marked]
            elif node not in self.tails:
                self.movers.add(node)
                if sources and all(source in marked for source in sources):
                    marked.add(node)
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

    producers: set[fx.Node] = set()
    known: dict[fx.Node, tuple[float, float] | None] = {}  # the ranges of groups that are known beforehand
    tails = {chain.tail for chain in annotation.chains.values()}
    for node in graph.nodes:
        if node not in quantized:
            continue
        if node in tails or node in annotation.reasons or not node.op.startswith("call"):
            producers.add(node)
            continue
        module = module_of(node, root)
        sources = [source for source in data_inputs(node, module) if source in quantized]
        is_fixed = behaviour_of(node, module) is Behaviour.FIXED
        if is_fixed:
            known[node] = operator_of(node, module).range
        # A known range is not given up for a concatenation with others: runtimes compute a softmax for it alone.
        if is_fixed or not sources or len({known.get(find(source)) for source in sources}) > 1:
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
        group = _make_group(names, nodes, makers, [heads.get(node, node) for node in makers], root, qconfig)
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
    names: _Names, nodes: list[fx.Node], makers: list[fx.Node], heads: list[fx.Node], root: nn.Module, qconfig: QConfig
) -> Group:
    spec = qconfig.activation
    for head in heads:
        rule = qconfig.rule_for(node_name(head), _types(head, root))
        if rule is not None and rule.activation is not None:
            spec = rule.activation
    if qconfig.edges is not None and any(head.op == "placeholder" for head in heads):
        spec = qconfig.edges.activation
    ranges = {operator_of(head, module_of(head, root)).range for head in heads}
    fixed = ranges.pop() if len(ranges) == 1 and spec.fixed_range is None else None
    return Group(names.unique(heads[0]), spec, nodes, makers, fixed)


def _weight_specs(graph: fx.Graph, root: nn.Module, qconfig: QConfig, annotation: Annotation) -> None:
    layers = [
        node
        for node in graph.nodes
        if node in annotation.chains and behaviour_of(node, module_of(node, root)) is Behaviour.LAYER
    ]
    for node in layers:
        rule = qconfig.rule_for(node_name(node), _types(node, root))
        annotation.weights[node] = rule.weight if rule is not None and rule.weight is not None else qconfig.weight
    if qconfig.edges is not None:
        for node in _edges(layers, root):
            annotation.weights[node] = qconfig.edges.weight


def _edges(layers: list[fx.Node], root: nn.Module) -> Iterable[fx.Node]:
    """The first convolution and the last linear layer."""
    names = [operator_of(node, module_of(node, root)).name for node in layers]
    if "conv" in names:
        yield layers[names.index("conv")]
    if "linear" in names:
        yield layers[len(names) - 1 - names[::-1].index("linear")]
