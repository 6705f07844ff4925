"""A layer with weights, quantized: what convolutions, transposed convolutions and linear layers have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgeq.arithmetic import bias_range, bias_scale, multiplier, smallest_weight_scale
from edgeq.errors import TraceError
from edgeq.modules.computed import computation_of, picklable
from edgeq.modules.dampening import dampened, rounding_error
from edgeq.modules.exact import ExactParameters, accumulate, exact_parameters, fingerprint, in_fast_layout
from edgeq.modules.folding import Folds
from edgeq.modules.handover import HandsOver, as_codes, as_real, handed_over, nobody_looks
from edgeq.modules.norm_strategies import NormStrategy
from edgeq.modules.operation import Operation
from edgeq.modules.qdq import exporting
from edgeq.phase import Phase
from edgeq.quantizers import kernel
from edgeq.quantizers.straight_through import given_slope
from edgeq.quantizers.tensor import TensorQuantizer, clip
from edgeq.quantizers.weight import WeightQuantizer, entry_scale, raw_scale, row_ends

FEW = 64  # entries of a row, to look at before all of them


@dataclass
class Site(Folds):
    """Where in the network a layer stands: what it works with, but does not own.

    `source` and `target` quantize its input and its output (None: the output stays float). `floor` and `ceiling`
    are the bounds of the activation that follows. `strategy` is how it is trained with the batch norm behind it.
    """

    name: str
    source: TensorQuantizer
    target: TensorQuantizer | None = None
    floor: float | None = None
    ceiling: float | None = None
    bias_bits: int = 32
    strategy: NormStrategy = field(default_factory=NormStrategy)


class QuantizedLayer(HandsOver):
    """Mixin for subclasses of the float layers.

    One layer has three forms, of which `forward` takes the one that the phase asks for:

    float      the reference: weights as they are, batch norm folded where it stands still
    simulated  fake-quantized weight and bias in float, differentiable: training
    exact      integers in float32, the arithmetic of integer hardware and of the converted module, bit for
               bit: evaluation and everything else that needs no gradient

    `recorder`, when set, sees each output before its activation and quantizer, and may replace it. `live_scale`,
    when set, is what the weight of the next call before a live batch norm is rounded with. `dampening` is how strongly
    the weight is pulled towards its codes while it is trained.
    Buffer: `bias_shift`, shape (channels,), what calibration has added to the deployed bias so far.
    """

    weight: Tensor
    bias: Tensor | None
    site: Site
    operation: Operation
    weight_quantizer: WeightQuantizer
    phase: Phase
    bias_shift: Tensor
    dampening: float
    recorder: Callable[[QuantizedLayer, Tensor, Tensor], Tensor] | None
    live_scale: Tensor | None

    def start(self, site: Site, operation: Operation, weight_quantizer: WeightQuantizer, channels: int) -> None:
        """Makes a float layer a quantized one; to be called once."""
        self.site, self.operation, self.weight_quantizer = site, operation, weight_quantizer
        self.phase = Phase.FLOAT
        self.recorder = self.live_scale = None
        self.dampening = 0.0
        self.readers = []
        self._cache: dict[str, tuple[Any, Any, Any]] = {}
        self.register_buffer("bias_shift", self.weight.new_zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.operation.function == "linear" and x.dim() > 2 and self.site.norms:
            raise TraceError(
                f"The batch norm next to the linear layer {self.site.name!r} was taken for one over its features, but "
                f"its input has {x.dim()} dimensions, {tuple(x.shape)}, so that it runs over dimension 1. Keep the "
                "norm in float: a rule of the preset with its name and `quantize = false`."
            )
        if exporting():
            return self._export(x)
        if not self._may_be_exact():
            return self._trained(as_real(x))
        if not torch.is_grad_enabled():
            return self._exact(x, nobody_looks(self, self.readers))
        with torch.no_grad():
            exact = self._exact(x, hand_over=False)
        simulated = self._trained(x)
        return kernel.with_gradient_of(simulated, exact) if simulated.requires_grad else exact

    def _trained(self, x: Tensor) -> Tensor:
        is_float = self.phase is Phase.FLOAT or self.phase is Phase.OBSERVE
        output = self._float(x) if is_float else self.simulated(x)
        if self.recorder is not None:
            output = self.recorder(self, x, output)
        if self.site.target is None:
            return clip(output, self.site.floor, self.site.ceiling, fresh=True)
        return self.site.target(output, self.site.floor, self.site.ceiling, fresh=True)

    # ---- deployed parameters

    @property
    def norm_is_live(self) -> bool:
        """Whether a batch norm that is folded in uses the statistics of the batch."""
        return self.site.is_live

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as they are deployed but for their rounding: changed as the weight's quantizer wants it, with
        the layer's neighbours folded in; differentiable.
        """
        return self.site.fold(self.operation, self.weight_quantizer.transform(weight), bias)

    @property
    def accumulator_scale(self) -> Tensor:
        """The scale of the accumulator, and so of the bias: shape () or (channels,)."""
        return bias_scale(self.site.source.scale, self.operation.to_channels(self.weight_quantizer.scale))

    def bias_codes(self, bias: Tensor) -> Tensor:
        """The deployed bias as integers, float32."""
        low, high = bias_range(self.site.bias_bits)
        return torch.round(bias.to(torch.float32) / self.accumulator_scale).clamp(low, high)

    def quantized_bias(self, bias: Tensor) -> Tensor:
        """The deployed bias as its codes keep it; the gradient is straight through."""
        with torch.no_grad():
            error = self.bias_codes(bias) * self.accumulator_scale - bias
        return bias + error.to(bias.dtype)

    @torch.no_grad()
    def refresh(self, weight: Tensor, bias: Tensor | None, starts: bool = False) -> None:
        """Takes the weight's scale anew from the deployed weight; large enough for the deployed bias to fit. `starts`
        says that this is a pass of training, which what is learned may start from.
        """
        smallest = None
        if bias is not None:
            smallest = smallest_weight_scale(bias, self.site.source.scale, self.site.bias_bits)
            smallest = self.operation.of_channels(smallest)
        self.weight_quantizer.refresh(self._extent(weight), smallest, starts, self._gain)

    def _extent(self, weight: Tensor) -> Tensor:
        """What the range of a deployed weight is measured of."""
        return self.weight_quantizer.extent(weight, self._gain)

    def _gain(self) -> Tensor:
        """What folding multiplies each entry of the weight with; broadcasts to it."""
        return self.site.gain(self.operation, self.weight)

    @property
    def deployed_bias(self) -> Tensor | None:
        """The parameter that the deployed bias moves with: the batch norm's, else the layer's."""
        norm = self.site.norm
        return self.bias if norm is None or norm.bias is None else norm.bias

    def move_bias(self, shift: Tensor) -> None:
        """Moves the deployed bias by `shift`, shape (channels,)."""
        bias = self.deployed_bias
        assert bias is not None, f"{self.site.name} has no bias"
        bias.add_(self.site.unfolded(shift))
        self.bias_shift.add_(shift)

    def finish(self) -> None:
        """Ends an observation: the weight's scale for the parameters as they stand."""
        self.refresh(*self.folded(self.weight, self.bias))

    # ---- the three forms

    @property
    def latent(self) -> Tensor:
        """The weight as it is trained: in float, and pulled towards its codes if that is wanted."""
        if not self.dampening or not torch.is_grad_enabled():
            return self.weight
        return dampened(self.weight, rounding_error(self), self.dampening)

    def _float(self, x: Tensor) -> Tensor:
        if self.norm_is_live or torch.is_grad_enabled():
            output = self.site.around(self.operation, x, self.weight, self.bias)
            return output - self.operation.spread(self.bias_shift, output)

        def build() -> tuple[Tensor, Tensor | None]:
            weight, bias = self.site.fold(self.operation, self.weight, self.bias)
            return in_fast_layout(weight), None if bias is None else bias - self.bias_shift

        inputs = [self.weight, self.bias, self.bias_shift, *self.site.tensors]
        return self.operation(x, *self._cached("folded", build, *inputs))

    def simulated(self, x: Tensor) -> Tensor:
        """The simulated output before the activation and the output's quantizer."""
        if self.norm_is_live:
            return self.site.strategy.simulate(self, x)
        weight, bias = self.folded(self.latent, self.bias)
        if self.weight_quantizer.follows:
            self.refresh(weight, bias, starts=True)
        weight = self.weight_quantizer(weight)
        return self.operation(x, weight, self.quantized_bias(bias) if bias is not None and self._adds_codes else bias)

    @property
    def _adds_codes(self) -> bool:
        """Whether the layer's products are those of integers, so that its bias is one too."""
        return self.weight_quantizer.is_uniform and self.site.source.is_uniform

    def simulated_beside_norm(self, x: Tensor) -> Tensor:
        """The same next to a norm that uses the statistics of the batch."""
        weight = self.weight_quantizer.transform(self.latent)
        raw = self._raw_weight(weight)
        bias = self.site.bias_beside(self.operation, weight, raw, self.bias)
        return self.site.around(self.operation, x, raw, bias)

    def _raw_weight(self, weight: Tensor) -> Tensor:
        """The weight next to a live batch norm, rounded for it."""
        live_scale, self.live_scale = self.live_scale, None  # for one call
        live_scale = self._live_scale(weight.detach()) if live_scale is None else live_scale
        return self.weight_quantizer.raw(weight, live_scale)

    def _live_scale(self, weight: Tensor) -> Tensor:
        """The signed scale at which the weight is rounded next to a live batch norm: one for each output channel, or
        one for each entry where the entries of a channel are multiplied by different numbers, or share no scale. It is
        differentiable in the deployed scale where that is learned, and in nothing else.
        """
        operation, quantizer, site = self.operation, self.weight_quantizer, self.site
        channelwise = site.before is None and not (operation.transposed and operation.groups > 1)
        with torch.no_grad():
            if channelwise and quantizer.scheme is None:
                return quantizer.live_scale(weight, site.output_gain(operation, weight))
            if quantizer.follows:
                deployed, _ = site.fold(operation, weight, None)
                quantizer.refresh(self._extent(deployed), starts=True, gain=self._gain)
            gain = site.gain(operation, weight)
        scale = operation.to_channels(quantizer.in_force(weight.numel())).expand(operation.channels(weight))
        scale = operation.per_output(scale, weight)
        with torch.no_grad():
            if site.before is not None:
                signed = entry_scale(scale, gain, weight, operation.groups, quantizer.codes_max)
            else:
                signed = raw_scale(scale, gain, self._ends(weight, scale / gain.abs()))
            slope = torch.where(signed.abs() == scale / gain.abs(), signed / scale, 0.0)  # 0 for steps of their own
        return given_slope(scale, signed, slope) if quantizer.learns else signed

    def _ends(self, weight: Tensor, size: Tensor) -> Tensor:
        """Extremes of each output channel as `raw_scale` needs them at scales of this size: of all of its entries, but
        for weights of which a few of each channel are great enough already.
        """
        rows, spread = self.operation.rows(weight), self.operation.per_output
        few = spread(rows[:, :FEW].abs().amax(1), weight).unsqueeze(0)
        if kernel.in_blocks(weight) and bool((size < few).all()):
            return few
        return torch.stack([spread(end, weight) for end in row_ends(rows, 0)])

    def _export(self, x: Tensor) -> Tensor:
        """What an exporter that was handed the prepared network itself reads; the deployed weight between
        QuantizeLinear and DequantizeLinear.
        """
        weight, bias = self.folded(self.weight, self.bias)
        weight = self.weight_quantizer.as_exported(weight)
        output = self.operation(x, weight, None if bias is None else self.quantized_bias(bias))
        if self.site.target is None:
            return clip(output, self.site.floor, self.site.ceiling, fresh=False)
        return self.site.target(output, self.site.floor, self.site.ceiling)

    def _may_be_exact(self) -> bool:
        """In evaluation, with or without gradients; and in training where there are none."""
        return (
            self.phase is Phase.QUANTIZE
            and not (self.training and torch.is_grad_enabled())
            and not self.norm_is_live
            and self.recorder is None
            and not torch.compiler.is_compiling()
            and self._adds_codes
            and (self.site.target is None or self.site.target.is_uniform)
        )

    def _exact(self, x: Tensor, hand_over: bool) -> Tensor:
        site = self.site
        parameters, low, high = self._exact_parameters()
        accumulator = accumulate(self.operation, as_codes(x, site.source), parameters)
        if site.target is None:
            output = accumulator.mul_(parameters.factor)
            return clip(output, site.floor, site.ceiling, fresh=True).to(self.weight.dtype)
        rounding = site.target.spec.rounding
        if hand_over:
            codes = kernel.settle_accumulator(accumulator, parameters.factor, low, high, rounding)
            return handed_over(codes, site.target)
        output = kernel.settle_accumulator(accumulator, parameters.factor, low, high, rounding, site.target.scale)
        return output.to(self.weight.dtype)

    def _exact_parameters(self) -> tuple[ExactParameters, float, float]:
        """The integers of the deployed layer, and the least and greatest centred code of its output; kept until
        one of the tensors that they come from changes.
        """
        site, quantizer = self.site, self.weight_quantizer
        source, target = site.source, site.target

        def build() -> tuple[ExactParameters, float, float]:
            weight, bias = self.folded(self.weight, self.bias)
            factor, low, high = self.accumulator_scale, 0.0, 0.0
            if target is not None:
                factor = multiplier(source.scale, self.operation.to_channels(quantizer.scale), target.scale)
                _, *ends = kernel.grid_of(target.qparams, site.floor, site.ceiling, target.spec.rounding)
                low, high = (end.item() for end in ends)
            codes = None if bias is None else self.bias_codes(bias)
            reach = kernel.grid_of(source.qparams)[1:]
            return exact_parameters(self.operation, quantizer.codes(weight), codes, factor, *reach), low, high

        inputs = [self.weight, self.bias, *quantizer.tensors, *site.tensors, *source.qparams]
        return self._cached("exact", build, *inputs, *(() if target is None else target.qparams))

    # ---- what is kept between calls

    def _cached(self, name: str, build: Callable[[], Any], *inputs: Tensor | None) -> Any:
        key = fingerprint(inputs)
        if name not in self._cache or self._cache[name][0] != key:
            self._cache[name] = key, inputs, build()
        return self._cache[name][2]

    def __getattr__(self, name: str) -> Any:
        computation = computation_of(self, name)
        if computation is None:
            return super().__getattr__(name)
        if torch.is_grad_enabled() or self.training or "_cache" not in self.__dict__:
            return computation.compute()
        return self._cached(name, computation.compute, *computation.sources)

    def forget(self) -> None:
        """Drops what is kept. A write through `.data` is not noticed, so every change of mode calls this."""
        self._cache.clear()
        self.live_scale = None

    def __getstate__(self) -> dict[str, Any]:
        return picklable({**super().__getstate__(), "_cache": {}, "live_scale": None})
