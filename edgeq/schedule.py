"""Which epoch observes, which updates batch-norm statistics, and where an epoch begins."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeq.errors import SpecError

FOLLOW = -1  # in `frozen`: the schedule decides
PRIME, FACTORS = 2**31 - 1, (1566083941, 1327217885)  # large, so that the hash of an average is far from an average


class Schedule(nn.Module):
    """Counts epochs: an epoch is one ``train(True)`` after which at least one training forward ran.

    In epoch e (from 0) batch-norm statistics are updated while e < `norm_epochs`, and ranges are observed while
    e < `observer_epochs`. With `steps_per_epoch`, or once `set_epoch` was called, ``train(True)`` counts for
    nothing: for trainers that change modes within an epoch.

    Buffers, all int64, so that a checkpoint resumes where it was: `epoch`; `step`, the training forwards of this
    epoch; `settled`, how many of them there were when the ranges were last made final; `frozen`, shape (2,):
    whether batch norms and observers are frozen by hand (1), live by hand (0), or follow the schedule (-1); `seal`,
    a hash of epoch and step: in an average of several states it is an average too, and no longer their hash.
    """

    epoch: Tensor
    step: Tensor
    settled: Tensor
    frozen: Tensor
    seal: Tensor

    def __init__(self, norm_epochs: int, observer_epochs: int, steps_per_epoch: int | None = None) -> None:
        super().__init__()
        for name, value, least in (
            ("num_batch_norm_update_epochs", norm_epochs, 0),
            ("num_observer_update_epochs", observer_epochs, 0),
            ("steps_per_epoch", steps_per_epoch, 1),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise SpecError(f"{name} must be an integer of at least {least}, got {value!r}.")
        self.norm_epochs, self.observer_epochs, self.steps_per_epoch = norm_epochs, observer_epochs, steps_per_epoch
        self.by_hand = False
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("settled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("frozen", torch.full((2,), FOLLOW, dtype=torch.int64))
        self.register_buffer("seal", self._hash())

    @classmethod
    def for_training(
        cls,
        total_epochs: int,
        norm_epochs: int | None = None,
        observer_epochs: int | None = None,
        steps_per_epoch: int | None = None,
    ) -> Schedule:
        """The schedule of quantization-aware training over `total_epochs`; None takes the defaults, a little
        less than half of them for batch norms and a little more for observers, at least one each.
        """
        if isinstance(total_epochs, bool) or not isinstance(total_epochs, int) or total_epochs < 1:
            raise SpecError(f"total_epochs must be an integer of at least 1, got {total_epochs!r}.")
        norms = max(1, total_epochs // 2 - 1) if norm_epochs is None else norm_epochs
        observers = max(1, total_epochs // 2 + 1) if observer_epochs is None else observer_epochs
        return cls(norms, observers, steps_per_epoch)

    def epoch_is_over(self) -> bool:
        """Whether a ``train(True)`` now begins another epoch."""
        return not self.by_hand and self.steps_per_epoch is None and bool(self.step > 0)

    def count(self) -> None:
        """Counts a training forward."""
        self.step.add_(1)
        self.seal.copy_(self._hash())

    def next_epoch(self) -> None:
        """Begins the next epoch."""
        self._begin(self.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch it is; from now on only this does."""
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise SpecError(f"The epoch must be an integer of at least 0, got {epoch!r}.")
        self.by_hand = True
        self._begin(epoch)

    def _begin(self, epoch: int | Tensor) -> None:
        self.epoch.copy_(torch.as_tensor(epoch))
        self.step.zero_()
        self.settled.zero_()
        self.seal.copy_(self._hash())

    def _hash(self) -> Tensor:
        return (self.epoch * FACTORS[0] + self.step * FACTORS[1]) % PRIME

    @property
    def is_average(self) -> bool:
        """Whether this is the state of no network, but the average of several, as `AveragedModel` with `use_buffers`
        makes it. What was rounded or chosen, a zero point, a power of two, is not to be averaged.
        """
        return bool(self.seal != self._hash())

    @property
    def is_settled(self) -> bool:
        """Whether the ranges are final for all that was seen."""
        return bool(self.settled == self.step)

    def settle(self) -> None:
        """Says that they are."""
        self.settled.copy_(self.step)
        self.seal.copy_(self._hash())

    def freeze(self, norms: bool | None, observers: bool | None) -> None:
        """Freezes (True) or unfreezes (False) by hand; None leaves the one as it is."""
        for index, value in enumerate((norms, observers)):
            if value is not None and not isinstance(value, bool):
                raise SpecError(f"freeze takes True, False or None, got {value!r}.")
            if value is not None:
                self.frozen[index] = int(value)

    @property
    def norms_are_live(self) -> bool:
        """Whether batch-norm statistics are updated in this epoch."""
        by_hand = int(self.frozen[0])
        return int(self.epoch) < self.norm_epochs if by_hand == FOLLOW else not by_hand

    @property
    def observers_are_live(self) -> bool:
        """Whether ranges are observed in this epoch."""
        by_hand = int(self.frozen[1])
        return int(self.epoch) < self.observer_epochs if by_hand == FOLLOW else not by_hand

    @property
    def ranges_are_held(self) -> bool:
        """Whether ranges are frozen by hand, which what quantizers learn is too."""
        return int(self.frozen[1]) == 1

    def extra_repr(self) -> str:
        return f"epoch {int(self.epoch)}, norms live for {self.norm_epochs}, observers for {self.observer_epochs}"
