"""The modules of a converted network: they hold integers, take integers and give integers.

Each can also be read by an ONNX exporter, which then sees the float operation between DequantizeLinear and
QuantizeLinear; what the module computes and what the file says are the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgeq.arithmetic import LARGEST_EXACT_INTEGER, Rounding, bias_scale, multiplier
from edgeq.modules import onednn
from edgeq.modules.exact import ExactParameters, accumulate, exact_parameters, fingerprint, largest_accumulator
from edgeq.modules.float32_state import Float32State
from edgeq.modules.handover import nobody_looks
from edgeq.modules.matmul import integer_matmul
from edgeq.modules.operation import Operation
from edgeq.modules.qdq import dequantize, exporting, quantize
from edgeq.qparams import QParams
from edgeq.quantizers import kernel
from edgeq.quantizers.tensor import TensorQuantizer, clip


class Codes(Float32State):
    """How a tensor's integers are to be read, and how real numbers become them.

    Buffers: `scale`, float32, and `zero_point`, whose type is that of the codes, both of shape (). `low` and
    `high` are the least and the greatest code that occur: the activation function in front, whose bounds are
    floor and ceiling, may leave only some of the type's.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        quantizer: TensorQuantizer,
        floor: float | None = None,
        ceiling: float | None = None,
        clip_on_integers: bool = False,
    ) -> None:
        super().__init__()
        dtype = torch.int8 if int(quantizer.quant_min) < 0 else torch.uint8
        self.name, self.rounding = quantizer.name, quantizer.spec.rounding
        self.floor, self.ceiling, self.clip_on_integers = floor, ceiling, clip_on_integers
        self.register_buffer("scale", quantizer.scale.detach().clone())
        self.register_buffer("zero_point", quantizer.zero_point.to(dtype))
        self.range = int(quantizer.quant_min), int(quantizer.quant_max)
        self.read_buffers()
        self.register_load_state_dict_post_hook(_read_buffers)

    def read_buffers(self) -> None:
        """Takes the values of the buffers, so that no forward pass has to."""
        self._scale, self._zero_point = float(self.scale), int(self.zero_point)
        low, high = (torch.tensor(end, device=self.scale.device) for end in self.range)
        qparams = QParams(self.scale, self.zero_point.to(torch.int32), low, high)
        _, *ends = kernel.grid_of(qparams, self.floor, self.ceiling, self.rounding)
        self.low, self.high = (int(end) + self._zero_point for end in ends)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Takes the type of the codes from the state too: it may come of other data, with other signs."""
        zero_point = state_dict.get(f"{prefix}zero_point")
        if isinstance(zero_point, Tensor) and zero_point.dtype is not self.zero_point.dtype:
            self.zero_point = self.zero_point.to(zero_point.dtype)
            half = (self.range[1] - self.range[0] + 1) // 2
            self.range = (-half, half - 1) if zero_point.dtype is torch.int8 else (0, 2 * half - 1)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        raise TypeError("Codes only describe a tensor: call encode or decode.")

    def encode(self, x: Tensor) -> Tensor:
        """The codes of real numbers to which the activation function was not applied yet."""
        if exporting():
            return self._export_encode(x)
        return kernel.encode(x, self.scale, self.zero_point, self.low, self.high, self.rounding)

    def decode(self, codes: Tensor) -> Tensor:
        """The real numbers of codes."""
        if exporting():
            return dequantize(codes, self.scale, self.zero_point)
        return kernel.decode(codes, self.scale, self.zero_point)

    def encode_accumulator(self, sums: Tensor, factor: Tensor, centred: bool = False) -> Tensor:
        """The codes of integer sums, which it overwrites; or, for an integer layer that works in float32 like the
        one that made the sums, the centred codes in that type.
        """
        if centred:
            low, high = self.low - self._zero_point, self.high - self._zero_point
            return kernel.settle_accumulator(sums, factor, low, high, self.rounding)
        return kernel.encode_accumulator(sums, factor, self.zero_point, self.low, self.high, self.rounding)

    def encode_slice(self, sums: Tensor, factor: Tensor, codes: Tensor) -> None:
        """Writes the codes of integer sums, which it overwrites, to `codes`."""
        kernel.encode_accumulator(sums, factor, self.zero_point, self.low, self.high, self.rounding, codes)

    def limit(self, codes: Tensor) -> Tensor:
        """Saturated codes, within the bounds of the activation function; overwrites them."""
        limits = torch.iinfo(codes.dtype)
        full = self.low == limits.min and self.high == limits.max
        return codes if full else codes.clamp_(self.low, self.high)

    def from_centred(self, codes: Tensor) -> Tensor:
        """The inverse of `centre`."""
        return (codes + self.zero_point).to(self.zero_point.dtype)

    def centre(self, codes: Tensor) -> Tensor:
        """Codes, of their own type or centred already, as centred codes in float32."""
        return codes if codes.is_floating_point() else kernel.centre(codes, self.zero_point)

    def code_of(self, value: float | None) -> int | None:
        """The code of a real number, not limited to those that occur; None of None."""
        return None if value is None else self._zero_point + round(value / self._scale)

    def reach(self) -> tuple[Tensor, Tensor]:
        """Least and greatest centred code."""
        ends = torch.tensor([self.low, self.high], dtype=torch.float32, device=self.scale.device) - self._zero_point
        return ends[0], ends[1]

    def _export_encode(self, x: Tensor) -> Tensor:
        """Activation function and QuantizeLinear. What the type of the codes does not clip by itself is clipped
        in front, in float, or behind, on codes, as the backend prefers.
        """
        limits, low, high = torch.iinfo(self.zero_point.dtype), self.low, self.high
        if self.floor == 0.0 and low == self._zero_point:
            x, low = torch.relu(x), limits.min
        if low == limits.min and high == limits.max:
            return quantize(x, self.scale, self.zero_point)
        if self.clip_on_integers:
            return torch.clamp(quantize(x, self.scale, self.zero_point), low, high)
        codes = ((low, limits.min), (high, limits.max))
        ends = [None if code == end else (code - self._zero_point) * self._scale for code, end in codes]
        return quantize(torch.clamp(x, *ends), self.scale, self.zero_point)

    def extra_repr(self) -> str:
        return f"{self.name}, {str(self.zero_point.dtype)[6:]}, scale {self._scale:.6g}"


def _read_buffers(module: Codes | IntegerLayer, _: Any) -> None:
    module.read_buffers()


class Quantize(Codes):
    """Real numbers to codes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)


class Dequantize(Codes):
    """Codes to real numbers; also the codes of each part that a tensor was split into."""

    def forward(self, codes: Any) -> Any:
        return self.decode(codes) if isinstance(codes, Tensor) else type(codes)(map(self.decode, codes))


class OnCodes(nn.Module):
    """An operation that only moves or picks values, done on the codes themselves by `on_codes`; an exporter
    reads `on_reals` between two conversions. `as_float` is for kernels that PyTorch lacks for small integers.
    """

    def __init__(
        self, on_codes: Callable[..., Any], on_reals: Callable[..., Any], codes: Codes, as_float: bool = False
    ) -> None:
        super().__init__()
        self.on_codes, self.on_reals, self.codes, self.as_float = on_codes, on_reals, codes, as_float

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if exporting():
            return self._map(self.on_reals(*self._map(args, self.codes.decode), **kwargs), self.codes.encode)
        if self.as_float:
            moved = self.on_codes(*self._map(args, Tensor.float), **kwargs)
            return self._map(moved, lambda x: x.to(self.codes.zero_point.dtype))
        return self.on_codes(*args, **kwargs)

    def _map(self, value: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """`value` with its codes, or the real numbers that came of them, changed; masks and indices are neither."""
        if isinstance(value, Tensor):
            relevant = value.is_floating_point() or value.dtype == self.codes.zero_point.dtype
            return change(value) if relevant else value
        if isinstance(value, tuple | list):
            return type(value)(self._map(item, change) for item in value)
        return value


class IntegerParameters(NamedTuple):
    """A layer for the integer kernels of the host, and the factor of each output channel; `fused` when the kernel
    itself makes codes of the sums.
    """

    kernel: onednn.IntegerKernel
    factor: Tensor
    fused: bool


class IntegerLayer(Float32State):
    """A layer with weights on integers: accumulate, add the bias, requantize.

    Buffers: `weight`, int8, laid out as in the float layer; `weight_scale`, shape () or (channels,); `bias`,
    int32, shape (channels,), or None, at the scale of the accumulator. `source` and `target` tell how input and
    output are to be read; without `target` the output is real, and clipped to floor..ceiling. `readers` are the
    integer layers that read the output, if nothing else does.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: Tensor | None
    bias_scale: Tensor
    bias_zero_point: Tensor

    def __init__(
        self,
        operation: Operation,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        source: Codes,
        target: Codes | None,
        floor: float | None = None,
        ceiling: float | None = None,
    ) -> None:
        super().__init__()
        self.operation, self.floor, self.ceiling = operation, floor, ceiling
        self.readers: list[IntegerLayer] = []
        self.register_buffer("weight", weight.to(torch.int8))
        self.register_buffer("weight_scale", weight_scale.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.to(torch.int32))
        self.source, self.target = source, target
        zeros = torch.zeros_like(self.weight_scale, dtype=torch.int8)
        self.register_buffer("weight_zero_point", zeros, persistent=False)
        self.register_buffer("bias_scale", self.accumulator_scale, persistent=False)
        self.register_buffer("bias_zero_point", torch.zeros_like(self.bias_scale, dtype=torch.int32), persistent=False)
        self._cache: tuple[Any, Any, ExactParameters | IntegerParameters] | None = None
        self.register_load_state_dict_post_hook(_read_buffers)

    @property
    def accumulator_scale(self) -> Tensor:
        """Shape () or (channels,)."""
        return bias_scale(self.source.scale, self.operation.to_channels(self.weight_scale))

    def read_buffers(self) -> None:
        """Computes anew what follows from the buffers."""
        self.bias_scale.copy_(self.accumulator_scale)

    def forward(self, codes: Tensor) -> Tensor:
        if exporting():
            return self._export(codes)
        parameters = self.exact_parameters()
        if isinstance(parameters, IntegerParameters):
            return self._on_integer_kernel(codes, parameters)
        sums = accumulate(self.operation, self.source.centre(codes), parameters)
        if self.target is None:
            return clip(sums.mul_(parameters.factor), self.floor, self.ceiling, fresh=True)
        centred = nobody_looks(self, [*self.readers]) and not any(reader.works_on_codes for reader in self.readers)
        return self.target.encode_accumulator(sums, parameters.factor, centred)

    @property
    def works_on_codes(self) -> bool:
        """Whether the layer wants its input as codes, not centred and in float32."""
        return isinstance(self.exact_parameters(), IntegerParameters)

    def _on_integer_kernel(self, codes: Tensor, parameters: IntegerParameters) -> Tensor:
        codes = self.source.from_centred(codes) if codes.is_floating_point() else codes
        batched = codes.dim() > (1 if self.operation.function == "linear" else 3)
        codes = codes if batched else codes.unsqueeze(0)
        output = self._requantized(codes, parameters)
        return output if batched else output.squeeze(0)

    def _requantized(self, codes: Tensor, parameters: IntegerParameters) -> Tensor:
        sums_of, factor, fused = parameters
        target = self.target
        if target is None:
            return clip(sums_of(codes).mul_(factor), self.floor, self.ceiling, fresh=True)
        if fused:
            zero = int(target.zero_point) + onednn.SIGN_BIT * (target.zero_point.dtype is torch.int8)
            made = sums_of(codes, torch.uint8, zero)
            return target.limit(onednn.signed(made) if target.zero_point.dtype is torch.int8 else made)
        shape = sums_of.outputs(codes)
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        made = torch.empty(shape, dtype=target.zero_point.dtype, memory_format=layout)
        for part in onednn.slices(shape):
            target.encode_slice(sums_of(codes[part]), factor, made[part])
        return made

    def exact_parameters(self) -> ExactParameters | IntegerParameters:
        """The integers as the kernel for them wants them, kept until a buffer changes."""
        target = self.target
        inputs = [self.weight, self.weight_scale, self.bias, self.source.scale, self.source.zero_point]
        inputs += [] if target is None else [target.scale, target.zero_point]
        key = fingerprint(inputs)
        if self._cache is None or self._cache[0] != key:
            factor = self.accumulator_scale
            if target is not None:
                weight_scale = self.operation.to_channels(self.weight_scale)
                factor = multiplier(self.source.scale, weight_scale, target.scale)
            self._cache = key, inputs, self._build(factor)
        return self._cache[2]

    def _build(self, factor: Tensor) -> ExactParameters | IntegerParameters:
        operation, weight, reach = self.operation, self.weight.to(torch.float32), self.source.reach()
        bias = None if self.bias is None else self.bias.to(torch.float64)
        each = factor.expand(operation.channels(weight)).contiguous()
        offset = torch.zeros_like(each) if bias is None else bias.abs()
        largest = largest_accumulator(operation, weight, *reach) + offset
        if not onednn.supports(operation, self.weight) or not self._sums_fit(largest, offset, each):
            return exact_parameters(operation, weight, bias, factor, *reach)
        target = self.target
        half_even = target is not None and target.rounding is Rounding.HALF_EVEN
        fused = half_even and target is not None and onednn.fused_is_exact(each, target.zero_point)
        kernel = onednn.IntegerKernel(operation, self.weight, bias, self.source.zero_point, each if fused else None)
        return IntegerParameters(kernel, operation.spread(factor, weight), fused)

    def _sums_fit(self, largest: Tensor, offset: Tensor, factor: Tensor) -> bool:
        """Whether sums of at most `largest`, the bias of at most `offset` included, can be handed over in float32:
        because they are exact there, or because those that are not saturate. No operand may overflow 32 bits.
        """
        if self.target is not None:
            relevant = 2 * (self.target.high - self.target.low + 1) / factor + offset
            largest = torch.where(largest < 2**31, torch.minimum(largest, relevant), largest)
        return bool((largest < LARGEST_EXACT_INTEGER).all())

    def _export(self, codes: Tensor) -> Tensor:
        x = self.source.decode(codes)
        weight = dequantize(self.weight, self.weight_scale, self.weight_zero_point, self.operation.weight_axis)
        bias = self.bias
        if bias is not None:
            bias = dequantize(bias, self.bias_scale, self.bias_zero_point)
        output = self.operation(x, weight, bias)
        return clip(output, self.floor, self.ceiling, False) if self.target is None else self.target.encode(output)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    def extra_repr(self) -> str:
        return f"{self.operation.function}, weight {tuple(self.weight.shape)}"


class IntegerMatmul(nn.Module):
    """`torch.matmul` of two tensors of codes."""

    def __init__(
        self, left: Codes, right: Codes, target: Codes | None, floor: float | None = None, ceiling: float | None = None
    ) -> None:
        super().__init__()
        self.left, self.right, self.target, self.floor, self.ceiling = left, right, target, floor, ceiling

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        if exporting():
            product = torch.matmul(self.left.decode(left), self.right.decode(right))
            return (
                clip(product, self.floor, self.ceiling, False) if self.target is None else self.target.encode(product)
            )
        left, right = kernel.centre(left, self.left.zero_point), kernel.centre(right, self.right.zero_point)
        sums = integer_matmul(left, right, self.left.reach(), self.right.reach())
        if self.target is None:
            return clip(sums.mul_(bias_scale(self.left.scale, self.right.scale)), self.floor, self.ceiling, True)
        return self.target.encode_accumulator(sums, multiplier(self.left.scale, self.right.scale, self.target.scale))
