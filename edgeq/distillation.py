"""Learning from the float model while the quantized one is trained, without a change of the training loop.

The outputs go through unchanged; on its way back their gradient takes that of the distillation loss along. So a user's
loss, optimizer and schedule stay what they are (Hinton et al., arXiv 1503.02531).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgeq import strict
from edgeq.errors import SpecError
from edgeq.registry import Registry

DISTILLATION_LOSSES: Registry[Callable[..., Tensor]] = Registry("distillation loss")


@dataclass(frozen=True)
class Distillation:
    """How much is learned from the float model. `weight` multiplies the loss of that name, which is added to the
    user's; `temperature` softens the distributions that "divergence" compares.
    """

    weight: float = strict.number(1.0, 0.0, 1e6)
    loss: str = "divergence"
    temperature: float = strict.number(2.0, 1e-3, 1e3)

    def __post_init__(self) -> None:
        strict.validate(self)
        DISTILLATION_LOSSES[self.loss]

    @classmethod
    def from_data(cls, value: Distillation | float | Mapping[str, Any]) -> Distillation:
        """From a weight, or a dict of the settings above. Raises SpecError for anything else."""
        if isinstance(value, Distillation):
            return value
        if isinstance(value, Mapping):
            strict.check_keys(value, ("weight", "loss", "temperature"), "distillation")
            return cls(**value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SpecError(f"distillation must be a weight or a dict of settings, got {value!r}.")
        return cls(weight=float(value))


@DISTILLATION_LOSSES.register("divergence")
def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The gradient, for the student's logits, of ``T**2 * KL(softmax(teacher / T) || softmax(student / T))``, averaged
    over all but the last dimension, which is that of the classes.
    """
    rows = max(1, student.numel() // max(1, student.shape[-1]))
    soft = torch.softmax(student / temperature, -1) - torch.softmax(teacher / temperature, -1)
    return soft * (temperature / rows)


@DISTILLATION_LOSSES.register("squared_error")
def squared_error(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The gradient of the mean squared difference; for outputs that are no logits."""
    return (student - teacher) * (2 / max(1, student.numel()))


class Teacher:
    """A copy of the float model, in evaluation mode, that never changes. It is no submodule: its weights are no part
    of a state dict, and no optimizer's business.
    """

    def __init__(self, model: nn.Module, distillation: Distillation) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.distillation = distillation
        self.scaler: torch.amp.GradScaler | None = None  # by which the user's loss is multiplied

    def teach(self, outputs: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """`outputs` of the quantized network for these arguments, of which each floating tensor that has a gradient
        takes the loss along. Raises SpecError where the float model returns something else.
        """
        with torch.no_grad():
            expected = pytree.tree_leaves(self.model(*args, **kwargs))
        leaves, structure = pytree.tree_flatten(outputs)
        if [getattr(leaf, "shape", None) for leaf in leaves] != [getattr(leaf, "shape", None) for leaf in expected]:
            raise SpecError(
                "distillation compares the outputs of the quantized network with the float model's, which in "
                "evaluation returns something else than in training. Give a model that returns the same in both."
            )
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        taught = [self._taught(leaf, other, scale) for leaf, other in zip(leaves, expected, strict=True)]
        return pytree.tree_unflatten(taught, structure)

    def _taught(self, student: Any, teacher: Any, scale: float) -> Any:
        if not (isinstance(student, Tensor) and student.is_floating_point() and student.requires_grad):
            return student
        return _WithLoss.apply(student, teacher, self.distillation, scale)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "scaler": None}  # which is the loop's, and cannot always be copied

    def to_where(self, function: Callable[[Tensor], Tensor]) -> None:
        """Moves the model as the network is moved."""
        self.model._apply(function)


class _WithLoss(torch.autograd.Function):
    """The student's output, whose gradient takes the distillation's along."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, distillation: Distillation, scale: float) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.distillation, ctx.scale = distillation, scale
        return student.clone()  # a view could not be written into, as a loop may do with what a network returns

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        student, teacher = (saved.float() for saved in ctx.saved_tensors)
        settings = ctx.distillation
        added = DISTILLATION_LOSSES[settings.loss](student, teacher, settings.temperature)
        return grad + (settings.weight * ctx.scale * added).to(grad.dtype), None, None, None
