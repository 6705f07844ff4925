"""The quantizer of a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeq.arithmetic import PowerOfTwoRule, along, power_of_two, round_to_integer
from edgeq.modules.float32_state import Float32State
from edgeq.modules.qdq import dequantize, quantize
from edgeq.observers.measuring import measuring
from edgeq.observers.minmax import MinMaxObserver
from edgeq.phase import Phase
from edgeq.qparams import QParams, qparams_of_range
from edgeq.quantizers.fixed import scheme_of
from edgeq.quantizers.kernel import Grid, in_blocks, with_gradient_of
from edgeq.quantizers.scheme import LearnedScale, require_uniform
from edgeq.spec import Granularity, Method, TensorSpec


class WeightQuantizer(Float32State):
    """Symmetric, signed codes of a weight, with one scale or one for each output channel (along `axis`).

    Buffers: `scale`, shape () or (channels,), the scale of the weight as it is deployed, which means with the
    batch norm that follows folded into it; and with error-compensated rounding `offset`, int8, of the weight's
    shape: by how many steps a code differs from the nearest one. `scheme` is what the spec's quantizer makes of it,
    None for the plain one; `trains` says whether the network is prepared for training.
    """

    scale: Tensor
    offset: Tensor | None

    def __init__(
        self,
        spec: TensorSpec,
        observer: Method,
        channels: int,
        axis: int,
        offset_shape: torch.Size | None = None,
        trains: bool = False,
    ) -> None:
        super().__init__()
        self.spec, self.axis = spec, axis
        self.phase = Phase.FLOAT
        per_channel = spec.granularity is Granularity.CHANNEL
        shape = (channels,) if per_channel else ()
        found = measuring(spec, observer, axis if per_channel else None)
        self.measure, self.follows_extremes = found.measure, isinstance(found, MinMaxObserver)
        self.register_buffer("scale", torch.ones(shape, dtype=torch.float32))
        self.register_buffer("offset", None if offset_shape is None else torch.zeros(offset_shape, dtype=torch.int8))
        self.codes_min, self.codes_max = spec.codes(signed=True)
        self.scheme = scheme_of(spec, trains, channels if per_channel else None)
        self.follows_extremes = self.follows_extremes and self.scheme is None

    @property
    def tensors(self) -> list[Tensor | None]:
        """What the deployed codes come from beside the weight."""
        return [self.scale, self.offset, *([] if self.scheme is None else self.scheme.buffers())]

    def keep_offset(self, shape: torch.Size) -> Tensor:
        """The offsets of the codes of a weight of this shape; zeros where there were none."""
        if self.offset is None:
            self.offset = torch.zeros(shape, dtype=torch.int8, device=self.scale.device)
        return self.offset

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes offsets along that a recovery has added. A state without any, from before one, has nearest codes."""
        kept = state_dict.get(f"{prefix}offset")
        if isinstance(kept, Tensor):
            self.keep_offset(kept.shape)
        elif self.offset is not None and f"{prefix}scale" in state_dict:
            state_dict[f"{prefix}offset"] = torch.zeros_like(self.offset)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def refresh(
        self,
        weight: Tensor,
        smallest: Tensor | None = None,
        starts: bool = False,
        gain: Callable[[], Tensor] | None = None,
    ) -> None:
        """Takes the scale from `weight`, the deployed one. `smallest`, shape () or (channels,), is the least
        scale at which the layer's bias fits its integer type. What is learned stays, but for a batch that `starts` it;
        `gain` gives what folding has multiplied each entry with, and broadcasts to the weight.
        """
        low, high = self.measure(weight)
        scale = self.scale_of(low, high, smallest)
        if isinstance(self.scheme, LearnedScale) and starts:
            if gain is not None:
                self.scheme.unit.copy_(self._unit(gain().expand_as(weight)))
            self.scheme.start(low if smallest is None else torch.minimum(low, self.codes_min * scale), high)
            self.scheme.count()
        if self.scheme is not None:
            scale = self.scheme.settled(self.qparams_at(scale), low, high).scale
        self.scale.copy_(scale)

    def _unit(self, gain: Tensor) -> Tensor:
        """The mean size of what folding has multiplied the weight, or each channel, with; 1 where that is zero."""
        sizes = gain.abs().transpose(0, self.axis).flatten(1).mean(1)
        sizes = sizes if self.scale.dim() else sizes.mean()
        return torch.where(sizes > 0, sizes, 1.0)

    @property
    def follows(self) -> bool:
        """Whether a pass of training takes the scale anew from the deployed weight."""
        if isinstance(self.scheme, LearnedScale):
            return self.scheme.is_starting
        return self.phase is Phase.ADAPT or (self.learns and self.scheme is not None and self.scheme.reach is not None)

    @property
    def learns(self) -> bool:
        """Whether a pass of training, or a step of an optimizer, may change the scale or the weight that is rounded."""
        return self.scheme is not None and self.scheme.learns

    @property
    def is_uniform(self) -> bool:
        """Whether the weight is integer codes times the scale."""
        return self.scheme is None or self.scheme.is_uniform

    def extent(self, weight: Tensor, gain: Callable[[], Tensor]) -> Tensor:
        """What the range is measured of: the deployed weight; or how great it may become, if the scheme says so. `gain`
        gives what folding has multiplied each entry with; it broadcasts to the weight.
        """
        reach = None if self.scheme is None else self.scheme.reach
        return weight if reach is None else (gain().abs() * reach).expand_as(weight)

    def transform(self, weight: Tensor) -> Tensor:
        """The weight that is deployed, before anything is folded into it, of a layer's own; differentiable."""
        return weight if self.scheme is None else self.scheme.transform(weight)

    def in_force(self, elements: int) -> Tensor:
        """The deployed scale. While it is learned for so many `elements`, it is differentiable, and the buffer takes it
        over.
        """
        if not (isinstance(self.scheme, LearnedScale) and self.scheme.learns):
            return self.scale
        scale, _ = self.scheme.numbers(self.qparams_at(self.scale), elements // max(1, self.scale.numel()))
        with torch.no_grad():
            self.scale.copy_(scale)
        return scale

    @property
    def qparams(self) -> QParams:
        """The numbers in force."""
        return self.qparams_at(self.scale)

    def qparams_at(self, scale: Tensor) -> QParams:
        """The numbers at a scale."""
        zero, low, high = (
            torch.full((), code, dtype=torch.int32, device=scale.device) for code in (0, self.codes_min, self.codes_max)
        )
        return QParams(scale, zero, low, high)

    def scale_of(self, low: Tensor, high: Tensor, smallest: Tensor | None = None) -> Tensor:
        """The scale for a range."""
        scale = qparams_of_range(self.spec, low, high).scale
        if smallest is not None:
            smallest = smallest.amax() if scale.dim() == 0 else smallest.expand_as(scale)
            if self.spec.rule is not None:
                smallest = torch.where(smallest > 0, power_of_two(smallest, PowerOfTwoRule.CEIL), smallest)
            scale = torch.maximum(scale, smallest)
        return scale

    def codes(self, weight: Tensor) -> Tensor:
        """The integers, as float32, of a deployed weight."""
        ratio = weight.to(torch.float32) / along(self.scale, self.axis, weight.dim())
        codes = round_to_integer(ratio)
        if self.offset is not None:
            codes = codes + self.offset
        return codes.clamp_(self.codes_min, self.codes_max)

    @torch.no_grad()
    def keep_codes(self, weight: Tensor, codes: Tensor) -> None:
        """Lets `codes`, within the range of the spec, be those of a deployed weight, by offsets from the nearest."""
        nearest = round_to_integer(weight.to(torch.float32) / along(self.scale, self.axis, weight.dim()))
        self.keep_offset(weight.shape).copy_((codes - nearest).clamp_(-128, 127))

    @property
    def _clips(self) -> bool:
        """Whether a weight may lie outside of the codes. Not while the scale follows its extremes."""
        limited = self.spec.range_max is not None or self.spec.fixed_range is not None
        limited = limited or self.spec.rule not in (None, PowerOfTwoRule.CEIL)  # which clip by one step at most
        return limited or self.phase is not Phase.ADAPT or not self.follows_extremes

    def forward(self, weight: Tensor) -> Tensor:
        """The deployed weight as its codes keep it; the gradient is straight through inside of the range."""
        return self._rounded(weight, along(self.in_force(weight.numel()), self.axis, weight.dim()), self.offset)

    def _rounded(self, weight: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
        """The weight at a scale that broadcasts to it."""
        if self.scheme is not None and (self.scheme.learns or not self.scheme.is_uniform):
            return self.scheme(weight, Grid(scale, *(code.to(torch.float32) for code in self.qparams_at(scale)[2:])))
        return round_weight(weight, scale, offset, self.codes_min, self.codes_max, self._clips)

    def as_exported(self, weight: Tensor) -> Tensor:
        """The deployed weight as an exporter that was handed the prepared network itself reads it: between
        QuantizeLinear and DequantizeLinear.
        """
        require_uniform(self.scheme, "a weight")
        if self.spec.bits < 8 or self.offset is not None:
            weight = self(weight)  # on the grid: the wider type of the file keeps its codes
        zero_point = torch.zeros_like(self.scale, dtype=torch.int8)
        return dequantize(quantize(weight, self.scale, zero_point, self.axis), self.scale, zero_point, self.axis)

    def rows(self, rows: Tensor, indices: Tensor, elements: int) -> Tensor:
        """Rows (*, features) of a weight of so many `elements`, those at `indices` (*), as their codes keep them."""
        scale = self.in_force(elements)
        return self._rounded(rows, scale if scale.dim() == 0 else functional.embedding(indices, scale.unsqueeze(1)))

    def raw(self, weight: Tensor, live_scale: Tensor) -> Tensor:
        """The weight before a live batch norm, so rounded that the norm's `factor` turns it into the deployed
        codes: ``round(w f / s) s / f`` is the rounding of w at the signed scale s / f, and no activation has to
        be divided by anything. `live_scale`, that signed scale, has shape (channels,) or broadcasts to the weight.
        """
        signed = live_scale if live_scale.dim() == weight.dim() else along(live_scale, self.axis, weight.dim())
        return self._rounded(weight, signed)

    @torch.no_grad()
    def live_scale(self, weight: Tensor, factor: Tensor) -> Tensor:
        """The signed scale, shape (channels,), for `raw`, of a plain quantizer; while it adapts, it takes the deployed
        scale anew.
        """
        ends = row_ends(weight, self.axis)
        if self.phase is Phase.ADAPT:
            self._follow(weight, factor, ends)
        return raw_scale(self.scale, factor, ends)

    def _follow(self, weight: Tensor, factor: Tensor, ends: Tensor) -> None:
        """Takes the deployed scale from a raw weight whose extremes, shape (2, channels), are known."""
        if not self.follows_extremes:
            self.refresh(weight * along(factor, self.axis, weight.dim()))
            return
        low, high = deployed_ends(ends, factor)
        if self.scale.dim() == 0:
            low, high = low.amin(), high.amax()
        self.scale.copy_(self.scale_of(low, high))

    def extra_repr(self) -> str:
        return f"{self.spec.bits} bits, {self.spec.granularity.value}, {self.spec.scale.value}"


def row_ends(weight: Tensor, axis: int) -> Tensor:
    """The extremes of each output channel, shape (2, channels), float32."""
    rows = weight.transpose(0, axis).flatten(1)
    return torch.stack([rows.amin(1), rows.amax(1)]).to(torch.float32)


def deployed_ends(ends: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """The extremes of each channel of the deployed weight, from those of the raw one."""
    deployed = ends * factor
    return deployed.amin(0), deployed.amax(0)


def raw_scale(scale: Tensor, factor: Tensor, ends: Tensor) -> Tensor:
    """The signed scale s / f, shape (channels,), at which a raw weight with these extremes is rounded.

    A channel whose deployed weight would round to nothing, gamma = 0 among them, keeps three levels of its own
    instead of none, so that gamma can still learn.
    """
    largest = ends.abs().amax(0)
    size = scale / factor.abs()
    size = torch.where(size < largest, size, torch.where(largest > 0, largest, 1.0))
    return torch.where(factor < 0, -size, size)


def entry_scale(scale: Tensor, gain: Tensor, weight: Tensor, groups: int, codes_max: int) -> Tensor:
    """The signed scale s / f of each entry of a weight (outputs, inputs / groups, ...) that is multiplied by `gain`
    when it is deployed at `scale`; all of them broadcast.

    An input channel that nothing would be left of in any output keeps fine steps of its own, so that its gamma can
    still learn; so does an output channel whose gamma is zero.
    """
    codes = (weight * gain).abs() >= scale / 2
    lives = codes.flatten(2).any(2) if weight.dim() > 2 else codes  # (outputs, inputs / groups)
    lives = lives.unflatten(0, (groups, -1)).any(1).repeat_interleave(len(weight) // groups, 0)
    own = weight.abs().amax().clamp(min=torch.finfo(weight.dtype).tiny) / codes_max
    size = scale / gain.abs()
    size = torch.where(lives.reshape(gain.shape) & torch.isfinite(size), size, own)
    return torch.where(gain < 0, -size, size)


def round_weight(
    weight: Tensor, scale: Tensor, offset: Tensor | None, codes_min: int, codes_max: int, clips: bool
) -> Tensor:
    """``clamp(round(w / s) + offset) * s`` with the straight-through gradient: one inside of the codes' range,
    and everywhere when `clips` is false.
    """
    if not clips and offset is None and weight.dtype is torch.float32 and in_blocks(weight):
        rounded = weight.clone()  # its gradient is the one that is wanted
        with torch.no_grad():
            rounded.div_(scale).round_().clamp_(codes_min, codes_max).mul_(scale)
        return rounded
    with torch.no_grad():
        ratio = weight.to(torch.float32) / scale
        codes = torch.round(ratio) if offset is None else torch.round(ratio) + offset
        rounded = (codes.clamp_(codes_min, codes_max) * scale).to(weight.dtype)
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return rounded
    if clips:
        inside = (ratio > codes_min - 0.5) & (ratio < codes_max + 0.5)
        weight = torch.where(inside, weight, weight.detach())
    return with_gradient_of(weight, rounded)
