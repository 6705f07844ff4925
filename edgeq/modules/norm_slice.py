"""Some channels of a user's batch norm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm


class NormSlice(BatchNorm):
    """The batch norm `owner` over its channels `start` to `stop`, for the part of a concatenation that has them.

    It owns nothing: weight, bias and running statistics are views of the owner's, so that gradients reach its
    parameters and its statistics are updated in place. One of the parts, `counts`, counts the batches for all.
    """

    def __init__(self, owner: BatchNorm, start: int, stop: int, counts: bool) -> None:
        nn.Module.__init__(self)
        self._owner = (owner,)  # in a tuple, since it is no child: it has its place in the user's tree
        self.channels, self.counts = slice(start, stop), counts
        self.num_features, self.eps, self.momentum = stop - start, owner.eps, owner.momentum
        self.affine, self.track_running_stats = owner.affine, owner.track_running_stats

    @property
    def owner(self) -> BatchNorm:
        """The user's batch norm."""
        return self._owner[0]

    def _part(self, whole: Tensor | None) -> Tensor | None:
        return None if whole is None else whole[self.channels]

    @property
    def weight(self) -> Tensor | None:  # type: ignore[override]
        """The owner's, as it is now; shape (channels,)."""
        return self._part(self.owner.weight)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The owner's, as it is now; shape (channels,)."""
        return self._part(self.owner.bias)

    @property
    def running_mean(self) -> Tensor | None:  # type: ignore[override]
        """The owner's; what is written to it is written to the owner's."""
        return self._part(self.owner.running_mean)

    @property
    def running_var(self) -> Tensor | None:  # type: ignore[override]
        """The owner's; what is written to it is written to the owner's."""
        return self._part(self.owner.running_var)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch.nn gives it
        momentum = self.momentum
        if self.training and self.owner.num_batches_tracked is not None:
            if self.counts:
                self.owner.num_batches_tracked.add_(1)
            if momentum is None:  # a plain average over all batches
                momentum = 1.0 / float(self.owner.num_batches_tracked)
        return nn.functional.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            0.0 if momentum is None else momentum,
            self.eps,
        )

    def _load_from_state_dict(self, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, *args)  # a batch norm's own would look for its count of batches

    def extra_repr(self) -> str:
        return f"channels {self.channels.start} to {self.channels.stop} of a batch norm"
