"""What every observer promises: buffers of fixed shape, finite from the start, and no read of a tensor's value
while it observes, so that a forward pass never waits for a device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from edgeq.modules.float32_state import Float32State

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec


class Observer(Float32State):
    """Finds the range of a tensor over the batches that it is shown.

    `spec` says for which codes the range is wanted. `channels` is None for one range a tensor, else the number
    of ranges, one a slice along `axis`; `measure`, which keeps nothing, goes by `axis` alone. Options are keyword-only
    and come from the preset.

    Buffers: `batches`, how many were seen; `low` and `high`, shape () or (channels,), what a subclass makes of
    the extremes of the batches. A value that is not finite stays visible in them.
    """

    for_weights = False  # whether `measure` does for a weight, also one channel at a time, what the options say
    bounds: ClassVar[dict[str, tuple[float, float]]] = {}  # least and greatest value of options that are numbers
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}  # the values of options that are names
    batches: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, spec: TensorSpec, channels: int | None = None, axis: int | None = None) -> None:
        super().__init__()
        self.spec, self.channels, self.axis = spec, channels, axis
        shape = () if channels is None else (channels,)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("low", torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("high", torch.zeros(shape, dtype=torch.float32))

    @classmethod
    def check(cls, spec: TensorSpec) -> None:
        """Raises SpecError for a spec whose ranges are not to be found this way."""

    @torch.no_grad()
    def observe(self, x: Tensor, floor: float | None = None, ceiling: float | None = None) -> None:
        """Takes in one batch. `floor` and `ceiling` are the bounds of an activation that is yet to be applied."""
        if x.numel() == 0:
            return
        low, high = (bounded(end.to(torch.float32), floor, ceiling) for end in self.extremes(x))
        self.update(x, low, high, floor, ceiling)
        self.batches.add_(1)

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and greatest value, per tensor or per channel."""
        if self.axis is None:
            return torch.aminmax(flat(x))
        rows = x.transpose(0, self.axis).flatten(1)
        return rows.amin(1), rows.amax(1)  # aminmax along a dimension is many times slower

    def update(self, x: Tensor, low: Tensor, high: Tensor, floor: float | None, ceiling: float | None) -> None:
        """Takes in a batch whose extremes, within the bounds, are `low` and `high`; by default the extremes of all
        batches are kept.
        """
        fresh = self.batches == 0
        self.low.copy_(torch.where(fresh, low, torch.minimum(self.low, low)))
        self.high.copy_(torch.where(fresh, high, torch.maximum(self.high, high)))

    def range(self) -> tuple[Tensor, Tensor]:
        """The range found so far, each of shape () or (channels,)."""
        return self.low, self.high

    @torch.no_grad()
    def measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The range of `x` alone; what was observed before does not count."""
        return self.extremes(x)

    def reset(self) -> None:
        """Forgets everything, in place."""
        for buffer in self.buffers():
            buffer.zero_()

    def merge_processes(self) -> None:
        """Makes all processes of the default group hold the range of all their batches together."""
        ends = self.gather_ends()
        self.low.copy_(ends[:, 0].amin(0))
        self.high.copy_(ends[:, 1].amax(0))

    def gather_ends(self) -> Tensor:
        """`low` and `high` of every process that saw a batch, shape (processes, 2, *low.shape); of all where none
        did. Gathered, not reduced: reductions of some backends lose a NaN. What one has seen, all have seen.
        """
        ends, batches = gathered(torch.stack([self.low, self.high])), gathered(self.batches)
        self.batches.copy_(batches.amax())
        return ends[batches > 0] if bool(batches.any()) else ends


def gathered(x: Tensor) -> Tensor:
    """`x` of each process of the default group, stacked."""
    parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, x)
    return torch.stack(parts)


def bounded(x: Tensor, floor: float | None, ceiling: float | None) -> Tensor:
    """`x` clamped to the bounds that there are."""
    return x if floor is None and ceiling is None else x.clamp(floor, ceiling)


def flat(x: Tensor) -> Tensor:
    """`x` as one dimension in the order of its memory where it is dense: reductions over a channels-last
    tensor in its logical order are several times slower.
    """
    if torch.compiler.is_compiling() or x.is_contiguous():
        return x.reshape(-1)
    if torch.empty_like(x).stride() == x.stride():  # strides are kept exactly where a tensor is dense
        return x.as_strided((x.numel(),), (1,))
    return x.reshape(-1)
