"""What a recovery step works with: a calibrated network, samples, and how good the network is."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from edgeq.errors import CalibrationError
from edgeq.recovery.bank import Call
from edgeq.recovery.samples import Samples

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule


class Work:
    """Handed to every step. The network is in evaluation mode, and a step leaves it so.

    A step that takes long goes through its units with `units`, which shows progress, skips those that an interrupted
    run has done, and saves after each; what is random in it comes from `generator`.
    """

    def __init__(self, network: PreparedModule, samples: Samples, seed: int) -> None:
        self.network, self.samples, self.seed = network, samples, seed
        self.first_unit = 0  # the first that is not done
        self.save: Callable[[int], None] | None = None  # keeps the network, with so many units done
        self.references = [self._real(network.run_float, call) for call in samples.held]
        if not any(self.references):
            raise CalibrationError("The network gives no floating tensor that a recovery could be judged by.")
        if not all(bool(output.isfinite().all()) for outputs in self.references for output in outputs):
            raise CalibrationError(
                "The float network gives NaN or infinity on the samples held out: nothing can be judged by it."
            )

    def take_references(self, references: list[list[Tensor]]) -> None:
        """Takes over what an interrupted run has judged by, to where the network is."""
        pairs = zip(references, self.references, strict=True)
        self.references = [[new.to(old.device) for new, old in zip(*pair, strict=True)] for pair in pairs]

    @property
    def seen(self) -> list[Call]:
        """The calls that a step may learn from."""
        return self.samples.seen

    def generator(self, *names: object) -> torch.Generator:
        """Random numbers that depend on the seed and on `names` alone, whatever was drawn before."""
        return torch.Generator().manual_seed(zlib.crc32(repr((self.seed, *names)).encode()))

    def units(self, units: Iterable[Any], title: str) -> Iterator[Any]:
        """The units of a step that are left to do, in order; after each one the network is saved."""
        numbered = list(enumerate(units))[self.first_unit :]
        for number, unit in tqdm(numbered, desc=title, disable=None, leave=False):
            yield unit
            if self.save is not None:
                self.save(number + 1)

    def observe_again(self) -> None:
        """Takes all ranges anew, from the calls that may be learned from; after a change of weights."""
        self.network.observe(self.seen)

    @torch.no_grad()
    def quality(self) -> float:
        """The signal-to-noise ratio of the network's outputs on the samples held out, in dB, against the outputs that
        the float network had before the first step.
        """
        signal = noise = 0.0
        for call, reference in zip(self.samples.held, self.references, strict=True):
            for found, expected in zip(self._real(self.network.run, call), reference, strict=True):
                signal += float(expected.double().square().sum())
                noise += float((expected.double() - found.double()).square().sum())
        return 10 * torch.log10(torch.tensor(max(signal, 1e-30) / max(noise, 1e-30))).item()

    @torch.no_grad()
    def _real(self, function: Callable[..., Any], call: Call) -> list[Tensor]:
        args, kwargs = call
        outputs = pytree.tree_leaves(function(*args, **kwargs))
        return [leaf for leaf in outputs if isinstance(leaf, Tensor) and leaf.is_floating_point()]
