"""What goes in and out of a unit of a network when the network runs on samples: what the unit learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgeq.graph.interpreter import Interpreter
from edgeq.modules.handover import as_real
from edgeq.recovery.bank import Call
from edgeq.recovery.probe import in_float
from edgeq.recovery.samples import part_of, size_of
from edgeq.recovery.units import Unit, ancestors, arguments, stretch

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule

ELEMENTS = 1 << 28  # kept of a unit at the most: 1 GiB of float32


@dataclass(frozen=True)
class UnitSample:
    """In one call of a few samples: the inputs of a unit in the quantized network, in the float one (`real`, which may
    be empty), and the floating tensors that the unit gives in the float network.
    """

    quantized: tuple[Any, ...]
    real: tuple[Any, ...]
    outputs: tuple[Tensor, ...]

    @property
    def elements(self) -> int:
        """How much it keeps in memory."""
        return sum(leaf.numel() for leaf in pytree.tree_leaves(self.__dict__) if isinstance(leaf, Tensor))


@torch.no_grad()
def divided(network: PreparedModule, calls: Sequence[Call], size: int) -> list[Call]:
    """The calls, cut into ones of at most `size` samples where their results are as many as they are."""
    args, kwargs = calls[0]
    results = [leaf for leaf in pytree.tree_leaves(network.run(*args, **kwargs)) if isinstance(leaf, Tensor)]
    if any(result.dim() == 0 or result.shape[0] != size_of(calls[0]) for result in results):
        return list(calls)
    starts = [(call, start) for call in calls for start in range(0, size_of(call), size)]
    return [part_of(call, slice(start, start + size)) for call, start in starts]


def samples_of(network: PreparedModule, unit: Unit, calls: Sequence[Call], with_real: bool) -> list[UnitSample]:
    """What the unit gets and gives in each of the calls; of fewer, evenly spread ones where memory does not suffice.
    The inputs in the float network only `with_real`.
    """
    first = _samples(network, unit, calls[:1], with_real)
    most = max(1, ELEMENTS // max(1, first[0].elements))
    stride = -(-len(calls) // most)
    return first + _samples(network, unit, calls[stride::stride], with_real)


@torch.no_grad()
def _samples(network: PreparedModule, unit: Unit, calls: Sequence[Call], with_real: bool) -> list[UnitSample]:
    quantized = _Recording(network, unit.inputs)
    real = _Recording(network, (*unit.inputs, *unit.outputs) if with_real else unit.outputs)
    inputs = [quantized.of(call) for call in calls]
    with in_float(network):
        values = [real.of(call) for call in calls]
    first = len(unit.inputs) if with_real else 0
    return [
        UnitSample(own, found[:first], tuple(floating(found[first:])))
        for own, found in zip(inputs, values, strict=True)
    ]


def floating(values: Any) -> list[Tensor]:
    """The floating tensors in what a graph gives."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


class _Recording:
    """Runs as much of a network as some of its values need."""

    def __init__(self, network: PreparedModule, wanted: Sequence[Any]) -> None:
        self.network = network
        needed = ancestors(wanted)
        nodes = [node for node in network.fx_graph.nodes if node in needed and node.op != "placeholder"]
        inputs = [node for node in network.fx_graph.nodes if node.op == "placeholder"]
        self.run = Interpreter(network.tree, graph=stretch(nodes, inputs, wanted))

    def of(self, call: Call) -> tuple[Any, ...]:
        """The values in one call."""
        values = self.run.run(*arguments(self.network, call))
        return pytree.tree_map_only(Tensor, as_real, values)
