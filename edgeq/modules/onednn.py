"""Integer sums on the integer kernels of oneDNN, where those of this host are exact.

x86 CPUs with VNNI add four products of 8-bit integers to a 32-bit sum in one instruction; older ones add pairs
of products in 16 bits and saturate without a word, so a probe decides. PyTorch brings the kernels along as
`torch.ops.onednn`, on plain uint8 and int8 tensors.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from edgeq.modules.operation import Operation

SIGN_BIT = 128  # the kernels want unsigned codes: signed ones, and their zero point, 128 greater
SHAPES = 4  # of inputs that a weight is kept packed for
RESIDENT = 1 << 20  # sums that stay in the caches until they are requantized; 4 MiB of float32
FINEST_STEP = 2.0**-15  # of a sum, in output codes, at which adding an output zero point still is exact


class IntegerKernel:
    """A convolution or linear layer on codes of one zero point.

    `weight` and `bias` are integers of any type; `scale`, shape (channels,), multiplies the sums, bias included:
    ones for the integer sums themselves.
    """

    def __init__(
        self, operation: Operation, weight: Tensor, bias: Tensor | None, zero_point: Tensor, scale: Tensor | None = None
    ) -> None:
        channels = weight.shape[0]
        self.signed = zero_point.dtype is torch.int8
        self.zero_point = unsigned_zero(zero_point)
        self.scale = torch.ones(channels) if scale is None else scale
        self.zeros = torch.zeros(channels, dtype=torch.int8)
        self.bias = None if bias is None else bias.to(torch.float32) * self.scale
        self.conv = None if operation.function == "linear" else _conv_arguments(operation, weight)
        self.weight = weight.to(torch.int8).contiguous()  # which packing takes for granted
        self.packed: dict[torch.Size, Tensor] = {}
        self.proven: dict[torch.Size, bool] = {}  # shapes of codes that it was tried on, and whether it was exact

    def outputs(self, codes: Tensor) -> tuple[int, ...]:
        """The shape of the sums for input codes of a shape."""
        channels = len(self.scale)
        if self.conv is None:
            return (*codes.shape[:-1], channels)
        sizes = zip(codes.shape[2:], self.weight.shape[2:], *self.conv[:3], strict=True)
        return (len(codes), channels, *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes))

    def __call__(self, codes: Tensor, dtype: torch.dtype = torch.float32, output_zero_point: int = 0) -> Tensor:
        """The scaled sums: float32, or with uint8 rounded half to even, moved by the zero point and saturated."""
        codes = unsigned(codes) if self.signed else codes
        inputs = [1.0, self.zero_point, self._packed_for(codes), self.scale, self.zeros, self.bias]
        output = [1.0, output_zero_point, dtype, "none", [], ""]
        if self.conv is None:
            return torch.ops.onednn.qlinear_pointwise(codes, *inputs, *output)
        codes = codes.contiguous(memory_format=torch.channels_last)
        return torch.ops.onednn.qconv2d_pointwise(codes, *inputs, *self.conv, *output)

    def _packed_for(self, codes: Tensor) -> Tensor:
        """The weight as the kernel for such an input wants it: packed for another, it is packed anew in each call."""
        if codes.shape not in self.packed:
            if len(self.packed) == SHAPES:
                self.packed.clear()
            if self.conv is None:
                packed = torch.ops.onednn.qlinear_prepack(self.weight, None)
            else:
                scales = (self.scale, 1.0, self.zero_point)
                packed = torch.ops.onednn.qconv_prepack(self.weight, *scales, *self.conv, list(codes.shape))
            self.packed[codes.shape] = packed
        return self.packed[codes.shape]


def _conv_arguments(operation: Operation, weight: Tensor) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups."""
    options = dict(operation.options)
    stride, padding, dilation = (_pair(options[name]) for name in ("stride", "padding", "dilation"))
    return stride, padding, dilation, operation.groups


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [int(item) for item in value]


def unsigned_zero(zero_point: Tensor) -> int:
    """The zero point of codes after `unsigned`; that of codes which are unsigned already stays."""
    return int(zero_point) + SIGN_BIT * (zero_point.dtype is torch.int8)


def unsigned(codes: Tensor) -> Tensor:
    """int8 codes, 128 greater, as uint8."""
    return codes.view(torch.uint8) ^ SIGN_BIT


def signed(codes: Tensor) -> Tensor:
    """The inverse of `unsigned`."""
    return (codes ^ SIGN_BIT).view(torch.int8)


def supports(operation: Operation, weight: Tensor, zero_point: Tensor) -> bool:
    """Whether the kernels can do an operation at all, on codes with `zero_point`, and exactly on this host.

    Of groups with more than one input channel some shapes (24 inputs and 48 outputs each, with AMX) get a wrong
    correction for the zero point; without a zero point they are right.
    """
    if operation.function not in ("conv2d", "linear") or operation.padding_mode != "zeros":
        return False
    if operation.groups > 1 and weight.shape[1] > 1 and unsigned_zero(zero_point) != 0:
        return False
    padding = dict(operation.options).get("padding", 0)
    return weight.device.type == "cpu" and not isinstance(padding, str) and is_exact()


def fused_is_exact(factor: Tensor, zero_point: Tensor) -> bool:
    """Whether scaling, bias and rounding inside of the kernel, which scales before it adds the bias and moves by
    the zero point before it rounds, give the same codes as in the order of the definition: for powers of two,
    where all of it is exact, and an even zero point, which leaves ties where they are.
    """
    powers = bool((torch.frexp(factor)[0] == 0.5).all())
    zero = int(zero_point)
    return powers and (zero == 0 or (zero % 2 == 0 and bool((factor >= FINEST_STEP).all())))


def slices(shape: tuple[int, ...]) -> list[slice]:
    """Runs along the first dimension, for as many sums as stay in the caches of all threads."""
    each = max(1, torch.Size(shape[1:]).numel())
    step = max(1, RESIDENT * torch.get_num_threads() // each)
    return [slice(start, start + step) for start in range(0, shape[0], step)]


@lru_cache(maxsize=1)
def is_exact() -> bool:
    """Whether this build has the kernels and they give, for extreme codes, what float64 gives."""
    wanted = ("qconv_prepack", "qconv2d_pointwise", "qlinear_prepack", "qlinear_pointwise")
    if not all(hasattr(torch.ops.onednn, name) for name in wanted):
        return False
    try:
        return all(_agrees(*case) for case in product((1, 32), (True, False)))
    except RuntimeError:  # a build of PyTorch without oneDNN, or a CPU that it has no kernels for
        return False


def _agrees(groups: int, is_conv: bool) -> bool:
    generator = torch.Generator().manual_seed(0)
    ends = torch.tensor([-128, -127, 126, 127], dtype=torch.int8)
    shape = (32, 32 // groups, 3, 3) if is_conv else (32, 64)
    weight = ends[torch.randint(4, shape, generator=generator)]
    weight[0] = 127
    codes = torch.randint(0, 256, (2, 32, 6, 6) if is_conv else (8, 64), generator=generator).to(torch.uint8)
    codes[0] = 255
    bias = torch.randint(-50_000, 50_000, (32,), generator=generator)
    options = (("dilation", 1), ("groups", groups), ("padding", 1), ("stride", 1)) if is_conv else ()
    operation = Operation("conv2d" if is_conv else "linear", options)
    zero_point = torch.tensor(3, dtype=torch.uint8)
    exact = operation(codes.double() - 3, weight.double(), bias.double())
    sums = IntegerKernel(operation, weight, bias, zero_point)(codes)
    factor = torch.full((32,), 2.0**-11)
    fused = IntegerKernel(operation, weight, bias, zero_point, factor)(codes, torch.uint8, 116)
    return torch.equal(sums.double(), exact) and torch.equal(
        fused.double(), ((exact * 2.0**-11).round() + 116).clamp(0, 255)
    )
