"""What the operations between two layers do with channels, found by trying: no table of layouts is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from edgeq.arithmetic import along
from edgeq.graph.interpreter import Interpreter
from edgeq.phase import Phase, set_phase
from edgeq.recovery.bank import Call
from edgeq.recovery.units import arguments

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule

NOWHERE = -1  # what stands for the channel of an input that is none of a source's


@contextmanager
def in_float(network: PreparedModule) -> Iterator[None]:
    """Within, a network that evaluates is the float one."""
    set_phase(network, Phase.FLOAT)
    try:
        yield
    finally:
        network.apply_mode()


class Probe:
    """Runs parts of a network's graph, which is to be `in_float`, on values of the shapes that a call gives.

    Of the call's own values only sizes, indices and masks are kept; of floating tensors the shapes, as zeros.
    """

    @torch.no_grad()
    def __init__(self, network: PreparedModule, call: Call) -> None:
        self.network = network
        self.recorder = _Recorder(network.tree, graph=network.fx_graph)
        self.recorder.run(*arguments(network, call))

    def shape(self, node: fx.Node) -> torch.Size:
        """The shape of a node's value."""
        return self.recorder.found[node].shape

    @torch.no_grad()
    def run(self, start: fx.Node, value: Tensor, path: Iterable[fx.Node]) -> dict[fx.Node, Any]:
        """The values of the nodes of `path`, which are in the order of the graph, where that of `start` is `value`;
        floating tensors that come from elsewhere are zeros.
        """
        values = {**self.recorder.found, start: value}
        runner = Interpreter(self.network.tree, garbage_collect_values=False, graph=self.network.fx_graph)
        runner.env = values
        for node in path:
            values[node] = runner.run_node(node)
        return values

    def channels(self, start: fx.Node, axis: int, path: list[fx.Node], ends: dict[fx.Node, int]) -> list[Tensor] | None:
        """For each of `ends`, nodes with the axis that their channels lie along, the channel of `start` that each of
        its channels comes from, shape (channels,), or NOWHERE. None where they are not as proportional, channel by
        channel, as they are taken for.

        Channels are doubled, which floating-point numbers do exactly: the first time those whose number, counted from
        one, has the lowest bit, then those with the next one. What comes out doubled spells the number.
        """
        shape = self.shape(start)
        generator = torch.Generator().manual_seed(0)
        x = (1 + torch.rand(shape, generator=generator)).to(self.recorder.found[start])
        number = torch.arange(1, shape[axis] + 1, device=x.device)
        before = self.run(start, x, path)
        found = {
            end: torch.zeros(before[end].shape[at], dtype=torch.int64, device=x.device) for end, at in ends.items()
        }
        for bit in range(int(number[-1]).bit_length()):
            factor = 1 + (number >> bit & 1)
            after = self.run(start, x * along(factor, axis, x.dim()), path)
            for end, at in ends.items():
                is_doubled = _doubled(rows(before[end], at), rows(after[end], at))
                if is_doubled is None:
                    return None
                found[end] += is_doubled.to(torch.int64) << bit
        return [numbers - 1 for numbers in found.values()]

    def carries(
        self, start: fx.Node, axis: int, path: list[fx.Node], ends: dict[fx.Node, tuple[int, Tensor]], sign: int
    ) -> dict[fx.Node, bool]:
        """At which of `ends`, nodes with the axis of their channels and where those come from, a tensor arrives as it
        is whose channels are constants of one `sign`, 1 or -1. Behind means or moves of values both do; behind a ReLU
        positive ones; behind zero padding none.
        """
        blank = self.recorder.found[start]
        field = sign * torch.linspace(0.5, 1, blank.shape[axis]).to(blank)
        spread = along(field, axis, blank.dim()).expand(blank.shape).contiguous()  # an activation may write into it
        values = self.run(start, spread, path)
        arrives = {}
        for end, (at, channels) in ends.items():
            expected = torch.where(channels == NOWHERE, 0.0, field[channels])[:, None]
            found = rows(values[end], at)
            arrives[end] = bool(torch.isclose(found, expected, rtol=1e-5, atol=1e-6).all())
        return arrives


def rows(x: Tensor, axis: int) -> Tensor:
    """A tensor as a matrix with a row for each channel."""
    return x.transpose(0, axis).flatten(1) if x.dim() > 1 else x[:, None]


def _doubled(before: Tensor, after: Tensor) -> Tensor | None:
    """Which channels, rows, came out doubled; None where one did in part, or came out otherwise."""
    doubled, same = after == 2 * before, after == before
    is_doubled = (doubled & ~same).any(1)
    consistent = torch.where(is_doubled[:, None], doubled, same)
    return is_doubled if bool(consistent.all()) else None


class _Recorder(Interpreter):
    """Keeps what each node gives: of floating tensors the shapes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.found[n] = pytree.tree_map_only(Tensor, _without_values, value)
        return value


def _without_values(x: Tensor) -> Tensor:
    """Zeros in the place of floating numbers, in the memory of one."""
    return x.new_zeros(()).expand(x.shape) if x.is_floating_point() else x
