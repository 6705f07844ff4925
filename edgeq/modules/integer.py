"""The layers and products of a converted network: they take integers and give integers, or real numbers where the
output is not quantized. An ONNX exporter sees the float operation between DequantizeLinear and QuantizeLinear.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgeq.arithmetic import LARGEST_EXACT_INTEGER, Rounding, bias_scale, multiplier
from edgeq.modules import onednn
from edgeq.modules.codes import Codes
from edgeq.modules.exact import ExactParameters, accumulate, exact_parameters, fingerprint, largest_accumulator
from edgeq.modules.float32_state import Float32State
from edgeq.modules.handover import HandsOver, nobody_looks
from edgeq.modules.matmul import integer_matmul
from edgeq.modules.operation import Operation
from edgeq.modules.qdq import dequantize, exporting
from edgeq.quantizers import kernel
from edgeq.quantizers.tensor import clip


class IntegerParameters(NamedTuple):
    """A layer for the integer kernels of the host, and the factor of each output channel. Where the kernel itself can
    make codes of the sums, `fused_zero` is the zero point of the output as an unsigned code.
    """

    kernel: onednn.IntegerKernel
    factor: Tensor
    fused_zero: int | None


def _read_buffers(module: IntegerLayer, _: Any) -> None:
    module.read_buffers()


class IntegerLayer(HandsOver, Float32State):
    """A layer with weights on integers: accumulate, add the bias, requantize.

    Buffers: `weight`, int8, laid out as in the float layer; `weight_scale`, shape () or (channels,); `bias`,
    int32, shape (channels,), or None, at the scale of the accumulator. `source` and `target` tell how input and
    output are to be read; without `target` the output is real, and clipped to floor..ceiling.
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
        self.readers = []
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
            codes = self.source.from_centred(codes) if codes.is_floating_point() else codes
            if self._is_proven(codes, parameters):
                return self._on_integer_kernel(codes, parameters)
            parameters = self._without_integer_kernel()
        centred = nobody_looks(self, self.readers) and not any(reader.works_on_codes for reader in self.readers)
        return self._on_float_kernel(codes, parameters, centred)

    @property
    def works_on_codes(self) -> bool:
        """Whether the layer wants its input as codes, not centred and in float32."""
        return isinstance(self.exact_parameters(), IntegerParameters)

    def _on_float_kernel(self, codes: Tensor, parameters: ExactParameters, centred: bool = False) -> Tensor:
        sums = accumulate(self.operation, self.source.centre(codes), parameters)
        if self.target is None:
            return clip(sums.mul_(parameters.factor), self.floor, self.ceiling, fresh=True)
        return self.target.encode_accumulator(sums, parameters.factor, centred)

    def _is_proven(self, codes: Tensor, parameters: IntegerParameters) -> bool:
        """Whether the integer kernel gives what it should for such an input, tried once on random codes: oneDNN has
        one for each shape, and for some shapes it is wrong (4x4 with a stride of 4, on AMX).
        """
        proven = parameters.kernel.proven
        if codes.shape not in proven:
            ends, generator = (self.source.low, self.source.high + 1), torch.Generator().manual_seed(0)
            tried = torch.randint(*ends, codes.shape, generator=generator, dtype=torch.int16).to(codes.dtype)
            expected = self._on_float_kernel(tried, self._exact_parameters())
            proven[codes.shape] = torch.equal(self._on_integer_kernel(tried, parameters), expected)
        return proven[codes.shape]

    def _without_integer_kernel(self) -> ExactParameters:
        """The exact parameters, from now on, until a buffer changes."""
        assert self._cache is not None
        key, inputs, _ = self._cache
        parameters = self._exact_parameters()
        self._cache = key, inputs, parameters
        return parameters

    def _on_integer_kernel(self, codes: Tensor, parameters: IntegerParameters) -> Tensor:
        batched = codes.dim() > (1 if self.operation.function == "linear" else 3)
        codes = codes if batched else codes.unsqueeze(0)
        output = self._requantized(codes, parameters)
        return output if batched else output.squeeze(0)

    def _requantized(self, codes: Tensor, parameters: IntegerParameters) -> Tensor:
        sums_of, factor, fused_zero = parameters
        target = self.target
        if target is None:
            return clip(sums_of(codes).mul_(factor), self.floor, self.ceiling, fresh=True)
        if fused_zero is not None:
            made = sums_of(codes, torch.uint8, fused_zero)
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
            self._cache = key, inputs, self._integer_parameters() or self._exact_parameters()
        return self._cache[2]

    def _factor(self) -> Tensor:
        """What makes an accumulator a code, or a real number."""
        if self.target is None:
            return self.accumulator_scale
        return multiplier(self.source.scale, self.operation.to_channels(self.weight_scale), self.target.scale)

    def _exact_parameters(self) -> ExactParameters:
        weight = self.weight.to(torch.float32)
        bias = None if self.bias is None else self.bias.to(torch.float64)
        return exact_parameters(self.operation, weight, bias, self._factor(), *self.source.reach())

    def _integer_parameters(self) -> IntegerParameters | None:
        """None where the integer kernels of the host are not exact, or cannot do the operation."""
        operation, weight, reach, factor = self.operation, self.weight.float(), self.source.reach(), self._factor()
        bias = None if self.bias is None else self.bias.to(torch.float64)
        each = factor.expand(operation.channels(weight)).contiguous()
        offset = torch.zeros_like(each) if bias is None else bias.abs()
        largest = largest_accumulator(operation, weight, *reach) + offset
        supported = onednn.supports(operation, self.weight, self.source.zero_point)
        if not supported or not self._sums_fit(largest, offset, each):
            return None
        zero = self._fused_zero(each)
        scale = None if zero is None else each
        kernel = onednn.IntegerKernel(operation, self.weight, bias, self.source.zero_point, scale)
        return IntegerParameters(kernel, operation.spread(factor, weight), zero)

    def _fused_zero(self, factor: Tensor) -> int | None:
        """The zero point of the output as an unsigned code, if the kernel's own requantization is exact."""
        target = self.target
        if target is None or target.rounding is not Rounding.HALF_EVEN:
            return None
        exact = onednn.fused_is_exact(factor, target.zero_point)
        return onednn.unsigned_zero(target.zero_point) if exact else None

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
        return {**super().__getstate__(), "_cache": None}

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
