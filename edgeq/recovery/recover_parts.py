"""Recovery of a network of which some submodules are quantized: part by part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgeq.recovery.bank import Call
from edgeq.recovery.recover import RecoveryReport, Step, recover
from edgeq.recovery.samples import Samples

if TYPE_CHECKING:
    from edgeq.graph.parts import PartedModule
    from edgeq.graph.prepared import PreparedModule


def recover_parts(
    network: PartedModule,
    calls: Iterable[Call],
    steps: Sequence[Step],
    seed: int = 0,
    samples: int = 1024,
    checkpoint: str | Path | None = None,
) -> RecoveryReport:
    """Recovers the parts, in their order, each on what reaches it in `calls` of the whole, behind those before it that
    are recovered. The names of steps in the report begin with the part's. A part that nothing calls is left out. Each
    has a checkpoint of its own, ``<name>.<part>``.

    Raises what `recover` raises.
    """
    taken = Samples(calls, samples)
    whole = [*taken.seen, *taken.held] if taken.is_held_apart else taken.seen
    network.train(False)
    report = RecoveryReport()
    for path, part in network.parts.items():
        reached = list(_reaching(network, part, whole))
        if not reached:
            continue
        own = None if checkpoint is None else f"{checkpoint}.{path}"
        found = recover(part, reached, steps, seed, samples, own)
        report.steps += [replace(step, name=f"{path}: {step.name}") for step in found.steps]
    return report


@torch.no_grad()
def _reaching(network: PartedModule, part: PreparedModule, calls: Iterable[Call]) -> Iterator[Call]:
    """The calls of a part in these calls of the whole; one that is called several times in each gives as many."""
    for args, kwargs in calls:
        found: list[Call] = []
        with _recording(part, found):
            network(*args, **kwargs)
        yield from found


@contextmanager
def _recording(part: PreparedModule, found: list[Call]) -> Iterator[None]:
    def record(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(pytree.tree_map_only(Tensor, torch.clone, (args, kwargs)))  # the whole may write into them

    handle = part.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
