"""What stands next to a layer with weights and is folded into its weight and bias."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from edgeq.errors import SpecError
from edgeq.modules.operation import Operation

BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(kw_only=True)
class Folds:
    """In the order of the data: `before`, a batch norm over the input's channels; the layer; `norm`, a batch norm over
    the output's channels; `factor` and `offset`, numbers that the output is multiplied with and that are added to it.

    Nothing of it is ever copied: the deployed weight and bias are computed anew from what the parameters are now.
    `norm_paths` says where the batch norms stand, by the names of their attributes here.
    """

    before: BatchNorm | None = None
    norm: BatchNorm | None = None
    factor: float = 1.0
    offset: float = 0.0
    norm_paths: dict[str, str] = field(default_factory=dict)

    def find_norms(self, root: nn.Module) -> None:
        """Takes the batch norms that stand in `root` now, where others may have been put in their places, such as
        synchronized ones. Raises SpecError for what is no batch norm over the same channels.
        """
        for name, path in self.norm_paths.items():
            found, known = root.get_submodule(path), getattr(self, name)
            if found is known:
                continue
            if (
                not isinstance(found, BatchNorm)
                or found.running_var is None
                or found.num_features != known.num_features
            ):
                raise SpecError(
                    f"{path!r} was {known}, which is folded into a layer, and now is {found}: only another batch norm "
                    "over as many channels, with running statistics, can take its place."
                )
            setattr(self, name, found)

    @property
    def norms(self) -> list[BatchNorm]:
        """The batch norms."""
        return [norm for norm in (self.before, self.norm) if norm is not None]

    @property
    def is_live(self) -> bool:
        """Whether a batch norm uses the statistics of the batch."""
        return any(norm.training for norm in self.norms)

    @property
    def tensors(self) -> list[Tensor | None]:
        """What the deployed parameters come from beside the layer's own."""
        return [t for norm in self.norms for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]

    def fold(self, operation: Operation, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The layer's weight and bias with all of it folded in, the norms by their running statistics;
        differentiable.
        """
        if self.before is not None:
            gain, shift = norm_factor(self.before), norm_shift(self.before)
            moved = operation.rows(weight * operation.per_input(shift, weight)).sum(1)
            bias = moved if bias is None else bias + moved
            weight = weight * operation.per_input(gain, weight)
        if self.norm is not None:
            factor, mean = norm_factor(self.norm), statistics(self.norm)[0]
            shift = -mean if bias is None else bias - mean
            bias = shift * factor if self.norm.bias is None else torch.addcmul(self.norm.bias, shift, factor)
            weight = weight * operation.per_output(factor, weight)
        if self.factor != 1.0:
            weight, bias = weight * self.factor, None if bias is None else bias * self.factor
        if self.offset != 0.0:
            bias = weight.new_full((operation.channels(weight),), self.offset) if bias is None else bias + self.offset
        return weight, bias

    def around(self, operation: Operation, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with each of its neighbours computed by itself, as in the float network."""
        x = x if self.before is None else self.before(x)
        output = operation(x, weight, bias)
        output = output if self.norm is None else self.norm(output)
        output = output if self.factor == 1.0 else output * self.factor
        return output if self.offset == 0.0 else output + self.offset

    def bias_beside(self, operation: Operation, weight: Tensor, rounded: Tensor, bias: Tensor | None) -> Tensor | None:
        """The bias for `around` with a `rounded` weight: what `before` adds goes into the deployed bias by way of the
        `weight` as it was.
        """
        if self.before is None:
            return bias
        moved = operation.rows((weight - rounded) * operation.per_input(norm_shift(self.before), weight)).sum(1)
        return moved if bias is None else bias + moved

    def output_gain(self, operation: Operation, weight: Tensor) -> Tensor:
        """What folding multiplies each output channel of the weight with, `before` aside; shape (channels,)."""
        if self.norm is None:
            return weight.new_full((operation.channels(weight),), self.factor)
        return norm_factor(self.norm) if self.factor == 1.0 else norm_factor(self.norm) * self.factor

    def gain(self, operation: Operation, weight: Tensor) -> Tensor:
        """What folding multiplies each entry of the weight with; broadcasts to the weight."""
        gain = operation.per_output(self.output_gain(operation, weight), weight)
        return gain if self.before is None else gain * operation.per_input(norm_factor(self.before), weight)

    def unfolded(self, shift: Tensor) -> Tensor:
        """By how much the parameter that the deployed bias moves with has to move, for the deployed one to move by
        `shift`, shape (channels,): the norm's bias where it has one, else the layer's.
        """
        behind = self.norm is not None and self.norm.bias is None
        shift = shift / norm_factor(cast(BatchNorm, self.norm)) if behind else shift
        return shift if self.factor == 1.0 else shift / self.factor


def norm_factor(norm: BatchNorm) -> Tensor:
    """What a batch norm multiplies a channel with when it uses its running statistics; shape (channels,)."""
    factor = torch.rsqrt(statistics(norm)[1] + norm.eps)
    return factor if norm.weight is None else norm.weight * factor


def norm_shift(norm: BatchNorm) -> Tensor:
    """What a batch norm adds to a channel that it has multiplied; shape (channels,)."""
    shift = -statistics(norm)[0] * norm_factor(norm)
    return shift if norm.bias is None else norm.bias + shift


def statistics(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """A batch norm's running mean and variance; only norms that have them are folded."""
    return cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
