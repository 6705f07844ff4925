"""How the integers of a tensor are read, and operations on them that need no weights.

Each module can also be read by an ONNX exporter, which then sees the float operation between DequantizeLinear and
QuantizeLinear; what the module computes and what the file says are the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgeq.modules.float32_state import Float32State
from edgeq.modules.qdq import dequantize, exporting, quantize
from edgeq.qparams import QParams
from edgeq.quantizers import kernel
from edgeq.quantizers.tensor import TensorQuantizer


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


def _read_buffers(module: Codes, _: Any) -> None:
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
    reads `on_reals` between two conversions. `as_float` is for kernels that PyTorch lacks for small integers,
    `centred` for operations that put zeros among the values: zero is the code of zero there.
    """

    def __init__(
        self,
        on_codes: Callable[..., Any],
        on_reals: Callable[..., Any],
        codes: Codes,
        as_float: bool = False,
        centred: bool = False,
    ) -> None:
        super().__init__()
        self.on_codes, self.on_reals, self.codes = on_codes, on_reals, codes
        self.as_float, self.centred = as_float, centred

    def do(self, function: Callable[..., Any]) -> None:
        """Does `function` from now on, to codes as well as to reals."""
        del self.on_codes, self.on_reals  # modules, maybe, whose place a function cannot take
        self.on_codes = self.on_reals = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if exporting():
            return self._call(self.on_reals, self.codes.decode, self.codes.encode, args, kwargs)
        if self.centred:
            return self._call(self.on_codes, self.codes.centre, self.codes.from_centred, args, kwargs)
        if self.as_float:
            return self._call(self.on_codes, Tensor.float, self._narrow, args, kwargs)
        return self.on_codes(*args, **kwargs)

    def _narrow(self, codes: Tensor) -> Tensor:
        return codes.to(self.codes.zero_point.dtype)

    def _call(self, function: Callable[..., Any], before: Any, after: Any, args: Any, kwargs: Any) -> Any:
        """The function between two changes of what the tensors hold."""
        return self._map(function(*self._map(args, before), **self._map(kwargs, before)), after)

    def _map(self, value: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """`value` with its codes, or the real numbers that came of them, changed; masks and indices are neither."""
        if isinstance(value, Tensor):
            relevant = value.is_floating_point() or value.dtype == self.codes.zero_point.dtype
            return change(value) if relevant else value
        if isinstance(value, tuple | list):
            return type(value)(self._map(item, change) for item in value)
        if isinstance(value, dict):
            return {key: self._map(item, change) for key, item in value.items()}
        return value
