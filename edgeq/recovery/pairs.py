"""Which layers read channels of which layer or norm alone, so that their scale and offset can move from one to the
others without the network's function changing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx

from edgeq.graph.conditions import is_of_shape
from edgeq.graph.kinds import module_of
from edgeq.graph.operators import PROPORTIONAL, Behaviour, behaviour_of, operator_of
from edgeq.graph.places import node_name
from edgeq.modules.layer import QuantizedLayer
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.recovery.bank import Call
from edgeq.recovery.memory import Memory
from edgeq.recovery.probe import NOWHERE, Probe, in_float, rows
from edgeq.recovery.sources import LayerSource, NormSource, Source

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule

AT_ZERO = ((None, None), (0.0, None))  # bounds of clips behind which twice as much is twice as much


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads a source. `channels`, shape (inputs,), says which of the source's channels each of its input
    channels is, NOWHERE for one that is none of them.

    What is added to a channel of the source arrives unchanged, at all positions, where `takes_offsets`; if nothing
    comes below zero, where `takes_positive`.
    """

    layer: QuantizedLayer
    channels: Tensor
    takes_offsets: bool
    takes_positive: bool

    def spread(self, values: Tensor, otherwise: float) -> Tensor:
        """Numbers for the source's channels as numbers for this layer's inputs; `otherwise` for all other inputs."""
        return torch.where(self.channels == NOWHERE, otherwise, values[self.channels])

    def gathered(self, values: Tensor, channels: int, least: float) -> Tensor:
        """Numbers for this layer's inputs as the greatest for each of the source's channels; no less than `least`."""
        own = self.channels != NOWHERE
        return values.new_full((channels,), least).scatter_reduce(0, self.channels[own], values[own], "amax")


@dataclass(frozen=True, eq=False)
class Pair:
    """A source and all that read it. A depthwise layer between two others is the source of one pair, the reader of
    another.
    """

    source: Source
    readers: tuple[Reader, ...]


@dataclass(frozen=True)
class Pairs:
    """Those of a network, in the order of the data, and why other layers and norms are the source of none."""

    found: list[Pair]
    skipped: dict[str, str]


def find_pairs(network: PreparedModule, call: Call) -> Pairs:
    """All pairs of a prepared network; `call` shows the shapes of its tensors.

    Between a source and its readers there are only operations of which k times as much gives k times as much, channel
    by channel: ReLU, PReLU, pools, means, moves and concatenations. Only layers read it. No other call reads the
    parameters that would be changed, and all of these are in the state dict.
    """
    pairs, skipped = [], {}
    with in_float(network):
        finder = _Finder(network, call)
        for node in network.fx_graph.nodes:
            source = finder.source(node)
            if source is None:
                continue
            path, ends, obstacle = finder.path(node)
            obstacle = finder.obstacle(source, ends) or obstacle
            readers = () if obstacle else finder.readers(node, source, path, ends)
            if readers:
                pairs.append(Pair(source, readers))
            else:
                skipped[source.name] = obstacle or "what it is read through mixes its channels"
    return Pairs(pairs, skipped)


class _Finder:
    """Looks for what reads a node's value, and in which order."""

    def __init__(self, network: PreparedModule, call: Call) -> None:
        self.network, self.probe = network, Probe(network, call)
        self.memory = Memory(network)

    def _module(self, node: fx.Node) -> Any:
        return module_of(node, self.network.tree)

    def source(self, node: fx.Node) -> Source | None:
        """The source that a node's value is, None where it is none."""
        module = self._module(node)
        if isinstance(module, QuantizedLayer):
            return LayerSource(module)
        if isinstance(module, NormSource.KINDS):
            return NormSource(module, node_name(node), len(self.probe.shape(node)))
        return None

    def path(self, start: fx.Node) -> tuple[list[fx.Node], list[fx.Node], str]:
        """The operations between a source and the layers that read it; the calls of those; why it cannot be one."""
        carriers: set[fx.Node] = {start}
        path: list[fx.Node] = []
        ends: list[fx.Node] = []
        for node in self.network.fx_graph.nodes:
            if not carriers.intersection(node.all_input_nodes) or self._is_size(node):
                continue
            if isinstance(self._module(node), QuantizedLayer):
                ends.append(node)
            elif node.op.startswith("call") and self._is_proportional(node):
                carriers.add(node)
                path.append(node)
            else:
                return path, ends, "the network returns it" if node.op == "output" else f"{node_name(node)} reads it"
        return path, ends, "" if ends else "nothing reads it"

    def obstacle(self, source: Source, ends: list[fx.Node]) -> str:
        """Why the parameters of a source, or of the layers that read it, cannot be changed; empty where they can."""
        layers = [self._module(end) for end in ends]
        behind_norms = [layer.site.name for layer in layers if layer.site.before is not None]
        if behind_norms:
            return f"a batch norm stands before {behind_norms[0]}, which reads it"
        of_readers = self.memory.obstacle([layer.weight for layer in layers])
        return source.obstacle or self.memory.obstacle(source.written) or of_readers

    def readers(self, node: fx.Node, source: Source, path: list[fx.Node], ends: list[fx.Node]) -> tuple[Reader, ...]:
        """The layers that read a source, the value of `node`; none where channels do not stay what they are."""
        layers = [self._module(end) for end in ends]
        values = [cast(fx.Node, end.args[0]) for end in ends]
        axes = {value: layer.operation.channel_axis for value, layer in zip(values, layers, strict=True)}
        found = self.probe.channels(node, source.channel_axis, path, axes)
        if found is None:
            return ()
        places = {value: (axis, numbers) for (value, axis), numbers in zip(axes.items(), found, strict=True)}
        above, below = (self.probe.carries(node, source.channel_axis, path, places, sign) for sign in (1, -1))
        readers = []
        for value, layer in zip(values, layers, strict=True):
            takes = self._takes(layer, value)
            readers.append(
                Reader(layer, places[value][1], takes and above[value] and below[value], takes and above[value])
            )
        return tuple(readers)

    def _is_size(self, node: fx.Node) -> bool:
        return node.op.startswith("call") and is_of_shape(node, operator_of(node, self._module(node)).name)

    def _is_proportional(self, node: fx.Node) -> bool:
        module = self._module(node)
        if isinstance(module, TensorQuantizer):
            return (node.kwargs.get("floor"), node.kwargs.get("ceiling")) in AT_ZERO
        row = operator_of(node, module)
        if row.bounds is not None:
            return row.bounds(node, module) in AT_ZERO
        return row.name in PROPORTIONAL and behaviour_of(node, module) is not Behaviour.FLOAT

    @torch.no_grad()
    def _takes(self, layer: QuantizedLayer, value: fx.Node) -> bool:
        """Whether a layer's bias can make good what is added to a channel of its input: not where zeros are padded."""
        bias = layer.deployed_bias
        if bias is None or self.memory.obstacle([bias]):
            return False
        ones = torch.ones(self.probe.shape(value)).to(layer.weight)
        answer = rows(layer.operation(ones, layer.weight.abs(), None), layer.operation.channel_axis)
        return bool(torch.isclose(answer, answer[:, :1], rtol=1e-4).all())
