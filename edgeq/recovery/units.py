"""The stretches of a network's graph that a recovery learns one after the other: single layers, and blocks of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from edgeq.graph.interpreter import Interpreter
from edgeq.graph.kinds import module_of
from edgeq.modules.layer import QuantizedLayer
from edgeq.modules.matmul import QuantizedMatmul
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.recovery.bank import Call

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule

CHAINED = 3  # layers in one block where no branches hold more of them together
WITHIN = 10  # layers that branches may hold together


@dataclass(frozen=True)
class Unit:
    """A stretch of a network's graph, which can be run by itself.

    `inputs` are the values that it reads from outside, `outputs` the floating ones that are read outside of it. What
    does not depend on the network's inputs, such as a position embedding, belongs to the `nodes` of all who read it;
    `moving` are the others.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    moving: frozenset[fx.Node]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]

    @property
    def graph(self) -> fx.Graph:
        """The stretch as a graph: from the inputs, in order, to a tuple of the outputs."""
        return stretch(self.nodes, self.inputs, self.outputs)


def stretch(nodes: Iterable[fx.Node], inputs: Iterable[fx.Node], outputs: Iterable[fx.Node]) -> fx.Graph:
    """A copy of some nodes, given in the order of the data, as a graph of its own."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    return graph


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """All that `nodes` are computed from, and they themselves."""
    found: set[fx.Node] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left.extend(node.all_input_nodes)
    return found


def layer_units(network: PreparedModule, call: Call) -> list[Unit]:
    """Each layer with what follows it up to the next quantizer or branch; `call` shows which values are floating."""
    plan = _Plan(network, call)
    return [plan.unit(plan.followed(node)) for node in plan.nodes if plan.layer(node) is not None]


def block_units(network: PreparedModule, call: Call) -> list[Unit]:
    """The network cut wherever all branches have closed. Layers of one kind that no branches hold together are chained,
    three at the most. A value that is read more than ten layers later, as in a U-Net or a DenseNet, keeps no block
    open. What follows the last layer belongs to no block.
    """
    plan = _Plan(network, call)
    blocks: list[list[fx.Node]] = []
    chain: list[str] = []  # the kinds of the layers of the last block, if it is a chain
    waiting: list[fx.Node] = []  # what has no layer goes with the next one
    for piece in plan.pieces():
        waiting += piece
        layers = [layer for node in piece if (layer := plan.layer(node)) is not None]
        if not layers:
            continue
        kinds = [] if plan.has_branches(piece) else [layer.operation.function for layer in layers]
        if chain and len(chain) < CHAINED and kinds == chain[:1]:
            blocks[-1] += waiting
            chain += kinds
        else:
            blocks.append(waiting)
            chain = kinds
        waiting = []
    return [plan.unit(block) for block in blocks]


class _Plan:
    """What a graph's nodes are, for cutting it. `nodes` are those that depend on the network's inputs, in order."""

    def __init__(self, network: PreparedModule, call: Call) -> None:
        self.network = network
        self.order = {node: index for index, node in enumerate(network.fx_graph.nodes)}
        moved = {node for node in self.order if node.op == "placeholder"}
        for node in self.order:
            if any(source in moved for source in node.all_input_nodes):
                moved.add(node)
        self.nodes = [node for node in self.order if node in moved and node.op.startswith("call")]
        self.floating = _floating(network, call) & moved
        index = {node: number for number, node in enumerate(self.nodes)}
        self.last = {node: max((index.get(user, len(index)) for user in node.users), default=-1) for node in moved}

    def layer(self, node: fx.Node) -> QuantizedLayer | None:
        """The layer with quantized weights that it calls, if it does."""
        module = module_of(node, self.network.tree)
        return module if isinstance(module, QuantizedLayer) else None

    def has_branches(self, nodes: list[fx.Node]) -> bool:
        """Whether any of the nodes brings values together."""
        return any(len(set(node.all_input_nodes) & self.floating) > 1 for node in nodes)

    def unit(self, nodes: list[fx.Node]) -> Unit:
        """Some nodes, and the constants that they read, as a unit."""
        inside = set(nodes)
        sources = {source for node in nodes for source in node.all_input_nodes} - inside
        constants = ancestors(source for source in sources if source not in self.last)
        names = [layer.site.name for node in nodes if (layer := self.layer(node)) is not None]
        outputs = [node for node in nodes if node in self.floating and any(user not in inside for user in node.users)]
        return Unit(
            " .. ".join(dict.fromkeys((names[0], names[-1]))),
            tuple(sorted(inside | constants, key=self.order.__getitem__)),
            frozenset(inside),
            tuple(sorted(sources - constants, key=self.order.__getitem__)),
            tuple(outputs),
        )

    def followed(self, layer: fx.Node) -> list[fx.Node]:
        """A layer and what it alone is read by, one after the other, as long as nothing is quantized."""
        nodes = [layer]
        module: Any = module_of(layer, self.network.tree)
        while module.site.target is None and len(nodes[-1].users) == 1:
            (reader,) = nodes[-1].users
            others = set(reader.all_input_nodes) & self.floating - {nodes[-1]}
            stops = isinstance(module_of(reader, self.network.tree), QuantizedLayer | QuantizedMatmul | TensorQuantizer)
            if stops or others or reader not in self.floating:
                break
            nodes.append(reader)
        return nodes

    def pieces(self) -> Iterator[list[fx.Node]]:
        """The nodes, cut as often as all branches are closed."""
        start = 0
        while start < len(self.nodes):
            end = self._end(start)
            yield self.nodes[start:end]
            start = end

    def _end(self, start: int) -> int:
        """Where the first piece from `start` on ends: at the first place at which, of all values that it has made or
        read, one at the most is still to be read before the horizon.
        """
        layers = [index for index in range(start, len(self.nodes)) if self.layer(self.nodes[index]) is not None]
        horizon = layers[WITHIN] if len(layers) > WITHIN else len(self.nodes)
        touched: set[fx.Node] = set()
        for index in range(start, horizon):
            node = self.nodes[index]
            touched |= {node, *node.all_input_nodes} & self.floating
            read = [value for value in touched if index < self.last[value] < horizon]
            if len(read) <= 1 and not any(map(self._is_unsettled, read)):
                return index + 1
        return horizon

    def _is_unsettled(self, value: fx.Node) -> bool:
        """Whether a quantizer is to read it."""
        return any(isinstance(module_of(user, self.network.tree), TensorQuantizer) for user in value.users)


def arguments(network: PreparedModule, call: Call) -> list[Any]:
    """What the inputs of the network's graph are in a call, in order."""
    args, kwargs = call
    names = network.argument_names
    given = {**network.argument_defaults, **dict(zip(names, args, strict=False)), **kwargs}
    return [given[name] for name in names]


@torch.no_grad()
def _floating(network: PreparedModule, call: Call) -> set[fx.Node]:
    """The nodes whose values hold floating tensors."""
    run = _Kinds(network.tree, graph=network.fx_graph)
    run.run(*arguments(network, call))
    return run.floating


class _Kinds(Interpreter):
    """Notes which values are floating tensors, or hold some."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.floating: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in pytree.tree_leaves(value)):
            self.floating.add(n)
        return value
