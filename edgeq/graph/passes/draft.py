"""A graph while it is rewritten."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeq.errors import SpecError
from edgeq.graph.annotate import stays_float
from edgeq.graph.fuse import Chain, chains
from edgeq.graph.growing_tree import RESERVED
from edgeq.graph.kinds import floating_nodes, module_of
from edgeq.graph.marks import marked
from edgeq.graph.operators import operator_of
from edgeq.graph.passes.changes import Change
from edgeq.graph.passes.compare import evaluate, greatest_difference, is_rounding
from edgeq.graph.passes.registry import Rewrite
from edgeq.graph.places import PLACE
from edgeq.graph.ranks import Ranks
from edgeq.graph.region import outside_of_region
from edgeq.graph.trace import SCOPE
from edgeq.spec import QConfig, Rule


class Draft:
    """The graph and the tree of modules that it calls, with what a rewrite needs to know and to do.

    `shapes` are those of the tensors of the original graph, where example inputs tell them.
    """

    def __init__(
        self, graph: fx.Graph, root: nn.Module, qconfig: QConfig, is_qat: bool, shapes: dict[fx.Node, torch.Size]
    ) -> None:
        self.graph, self.root, self.qconfig, self.is_qat, self.shapes = graph, root, qconfig, is_qat, shapes
        self.changes: list[Change] = []
        self._look()

    def run(self, rewrite: Rewrite, options: dict[str, Any]) -> None:
        """Lets a rewrite make its changes."""
        self.rewrite, before = rewrite, len(self.changes)
        rewrite(self, **options)
        if len(self.changes) > before:
            self.graph.lint()
            self._look()

    def _look(self) -> None:
        """Learns of the graph, as it is now, what rewrites ask for."""
        self.ranks = Ranks(self.graph, self.root, self.shapes)
        self._apart = outside_of_region(self.graph, self.root) | set(marked(self.graph, self.root))
        self._chains: dict[fx.Node, Chain] | None = None

    # ---- what there is

    def nodes(self) -> list[fx.Node]:
        """The nodes in order, as they are now."""
        return list(self.graph.nodes)

    def module(self, node: fx.Node) -> Any:
        """The module that a node calls, or None."""
        return module_of(node, self.root)

    def kind(self, node: fx.Node) -> str:
        """The operation of a node, as the table of operators calls it; "" for what is no call."""
        return operator_of(node, self.module(node)).name if node.op.startswith("call") else ""

    def reader(self, node: fx.Node) -> fx.Node | None:
        """The call that alone reads a value, as its first argument; None where there are others."""
        users = list(node.users)
        alone = len(users) == 1 and users[0].op.startswith("call") and users[0].args[:1] == (node,)
        return users[0] if alone and users[0].all_input_nodes.count(node) == 1 else None

    def rule(self, node: fx.Node) -> Rule | None:
        """The rule of the preset that decides about a node."""
        return self.qconfig.rule_for(node.meta[PLACE])

    def is_quantized(self, node: fx.Node) -> bool:
        """Whether an operation is one that quantization may touch."""
        return node not in self._apart and not stays_float(node, self.root, self.rule(node))

    def gives_way(self, node: fx.Node, to: fx.Node) -> bool:
        """Whether an operation may become a part of another one: no rule wants anything else for it."""
        rule = self.rule(node)
        return node not in self._apart and (rule is None or rule is self.rule(to))

    def chains(self) -> dict[fx.Node, Chain]:
        """What is fused as the graph stood when the rewrite began."""
        if self._chains is None:
            floating = floating_nodes(self.graph, self.root)
            untouched = {n for n in self.graph.nodes if n not in floating or not self.is_quantized(n)}
            self._chains = chains(self.graph, self.root, untouched)
        return self._chains

    # ---- what is changed

    def insert(self, like: fx.Node, behind: fx.Node, target: Any, args: tuple[Any, ...], name: str) -> fx.Node:
        """A new call behind a node, at the place of the user's operation `like`: of a function, or of the module at a
        path.
        """
        kind = "call_module" if isinstance(target, str) else "call_function"
        with self.graph.inserting_after(behind):
            node = self.graph.create_node(kind, target, args, name=name)
        node.meta.update({key: like.meta[key] for key in (SCOPE, PLACE) if key in like.meta})
        return node

    def install(self, name: str, module: nn.Module) -> str:
        """Puts a new module into the tree. Returns its path."""
        layers: Any = self.root.get_submodule(f"{RESERVED}.layers")
        while name in layers or hasattr(layers, name):
            name += "_"
        module.training = False
        layers.add_module(name, module)
        return f"{RESERVED}.layers.{name}"

    def retarget(self, node: fx.Node, function: Any, args: tuple[Any, ...]) -> None:
        """Lets a node call a function instead. It keeps its name and its place."""
        node.op, node.target, node.args, node.kwargs = "call_function", function, args, {}

    def erase(self, nodes: Iterable[fx.Node]) -> None:
        """Drops nodes that nothing reads any more, each before the ones that it reads."""
        for node in nodes:
            self.graph.erase_node(node)

    # ---- what is compared

    def sample(self, *shape: int) -> Tensor:
        """Normal random numbers, always the same, of the network's type and on its device."""
        generator = torch.Generator().manual_seed(0)
        like = next((t for t in self.root.parameters() if t.is_floating_point()), torch.empty(0))
        return torch.randn(shape, generator=generator).to(like)

    def value(self, node: fx.Node, given: dict[fx.Node, Any]) -> Any:
        """What a node gives, from given values."""
        return evaluate(self.root, node, given)

    def record(self, place: fx.Node, what: str, before: Any, after: Any) -> None:
        """Notes a change, with what the place gave before it and gives now on the same data.

        Raises SpecError for a rewrite that should keep the function and did not.
        """
        difference, size = greatest_difference(before, after)
        name, rewrite = place.meta[PLACE].name, self.rewrite
        dtype = self.sample(0).dtype
        if rewrite.keeps and (math.isnan(difference) or not is_rounding(difference, size, dtype)):
            raise SpecError(
                f"The rewrite {rewrite.name!r} would change what {name!r} computes by {difference:.3g}, where values "
                f"reach {size:.3g}: {what}. Switch it off: rewrites={{{rewrite.name!r}: False}}."
            )
        self.changes.append(Change(rewrite.name, name, what, difference, size, rewrite.keeps))
