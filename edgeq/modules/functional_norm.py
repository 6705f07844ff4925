"""A call of `torch.nn.functional.batch_norm` over a user's own tensors, as a module that follows the mode."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm
TENSORS = ("running_mean", "running_var", "weight", "bias")
Stored = tuple[nn.Module, str] | None  # the module that has a tensor as an attribute, and the attribute's name


class FunctionalNorm(BatchNorm):
    """Owns nothing: weight, bias and running statistics are looked up where the user keeps them, each time, so that
    gradients reach the user's parameters and the statistics are updated in place. The module that keeps the
    statistics may count its batches (`num_batches_tracked`), and average over all of them (``momentum=None``).
    """

    def __init__(self, stored: dict[str, Stored], momentum: float, eps: float) -> None:
        nn.Module.__init__(self)
        self._stored = stored  # by the names in TENSORS
        self._momentum, self.eps = momentum, eps
        self.affine, self.track_running_stats = stored["weight"] is not None, True

    def move(self, old: nn.Module, new: nn.Module) -> None:
        """Looks up in `new` what was kept in `old`."""
        for name, found in self._stored.items():
            if found is not None and found[0] is old:
                self._stored[name] = new, found[1]

    def _look_up(self, name: str) -> Any:
        found = self._stored[name]
        return None if found is None else getattr(*found)

    @property
    def weight(self) -> Tensor | None:  # type: ignore[override]
        """The user's, as it is now; shape (channels,)."""
        return self._look_up("weight")

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The user's, as it is now; shape (channels,)."""
        return self._look_up("bias")

    @property
    def running_mean(self) -> Tensor | None:  # type: ignore[override]
        """The user's; what is written to it is written to the user's."""
        return self._look_up("running_mean")

    @property
    def running_var(self) -> Tensor | None:  # type: ignore[override]
        """The user's; what is written to it is written to the user's."""
        return self._look_up("running_var")

    @property
    def num_features(self) -> int:  # type: ignore[override]
        """How many channels there are."""
        return self._look_up("running_var").numel()

    @property
    def momentum(self) -> float | None:  # type: ignore[override]
        """The share of a batch in the running statistics; None for an average over all batches."""
        keeper = self._keeper
        return keeper.momentum if isinstance(keeper, BatchNorm) else self._momentum

    @property
    def num_batches_tracked(self) -> Tensor | None:  # type: ignore[override]
        """How many batches the user's module has counted, if it does."""
        return getattr(self._keeper, "num_batches_tracked", None)

    @property
    def _keeper(self) -> Any:
        stored = self._stored["running_mean"]
        assert stored is not None
        return stored[0]

    def forward(self, x: Tensor) -> Tensor:
        momentum, batches = self.momentum, self.num_batches_tracked
        if self.training and batches is not None:
            batches.add_(1)
            momentum = 1.0 / float(batches) if momentum is None else momentum
        return nn.functional.batch_norm(
            x,
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
        return f"{self.num_features}, eps={self.eps:g}"


class FrozenNorm(FunctionalNorm):
    """The same where the user's program never updates the statistics: it is in evaluation mode, whatever it is told."""

    @property
    def training(self) -> bool:  # type: ignore[override]
        """False."""
        return False

    @training.setter
    def training(self, mode: bool) -> None:
        pass
