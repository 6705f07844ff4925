"""The quantizer of an activation, or of a constant that is used like one."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from edgeq.errors import CalibrationError
from edgeq.modules.float32_state import Float32State
from edgeq.modules.qdq import dequantize, exporting, quantize
from edgeq.observers.registry import OBSERVERS
from edgeq.phase import Phase
from edgeq.qparams import QParams, qparams_of_range
from edgeq.quantizers import kernel
from edgeq.quantizers.fixed import scheme_of
from edgeq.quantizers.scheme import LearnedScale, require_uniform
from edgeq.quantizers.step import Manner
from edgeq.spec import Method, ScaleKind, TensorSpec


class TensorQuantizer(Float32State):
    """One range, and all the tensors that share it.

    `name` is the tensor's name in the graph, for messages. `fixed` is the range of an operation whose output
    is known beforehand (sigmoid, softmax, tanh); its scale is a power of two. Without an observer, or with a fixed
    range, no data is ever observed.

    `scheme` is what the spec's quantizer makes of that, None for the plain one; `trains` says whether the network is
    prepared for training. While it learns, each forward pass takes its numbers over into the buffers.

    Buffers: those of `QParams`, shape (), the observer's and the scheme's.
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: Tensor
    quant_max: Tensor

    def __init__(
        self,
        name: str,
        spec: TensorSpec,
        observer: Method | None,
        fixed: tuple[float, float] | None = None,
        trains: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.spec, self.fixed = name, spec, fixed
        self.phase = Phase.FLOAT
        self.observer = None if fixed or observer is None else OBSERVERS[observer.name](spec, **dict(observer.options))
        self.scheme = None if self.observer is None else scheme_of(spec, trains)
        for key, value in self._parameters_of(*(fixed or (0.0, 0.0)))._asdict().items():
            self.register_buffer(key, value)
        self.read_bounds()

    def _parameters_of(self, low: float | Tensor, high: float | Tensor) -> QParams:
        spec = self.spec
        if self.fixed:
            spec = dataclasses.replace(
                spec, scale=ScaleKind.POWER_OF_TWO, range_max=None, fixed_range=None, quantizer=Method("fixed")
            )
        low, high = torch.as_tensor(low), torch.as_tensor(high)
        qparams = qparams_of_range(spec, low, high)
        return qparams if self.scheme is None else self.scheme.settled(qparams, low, high)

    @property
    def qparams(self) -> QParams:
        """The numbers in force."""
        return QParams(self.scale, self.zero_point, self.quant_min, self.quant_max)

    @property
    def is_uniform(self) -> bool:
        """Whether its numbers are those of integer codes and a scale."""
        return self.scheme is None or self.scheme.is_uniform

    @property
    def observed(self) -> bool:
        """Whether a floating tensor ever came by, or none needs to. Reads a buffer: not for a forward pass."""
        return self.observer is None or bool(self.observer.batches > 0)

    def forward(self, x: Any, floor: float | None = None, ceiling: float | None = None, fresh: bool = False) -> Any:
        """`x` as the phase wants it: clamped to floor..ceiling, the bounds of the activation function that the
        quantizer has absorbed, and quantized. What is not a floating tensor passes untouched. `fresh` says
        that nobody else holds `x`, so that it may be overwritten where no gradient is recorded.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        if self.phase is Phase.FLOAT or self.phase is Phase.OBSERVE:
            x = clip(x, floor, ceiling, fresh)
            if self.phase is Phase.OBSERVE and self.observer is not None:
                self.observer.observe(x.detach())
            return x
        if self.scheme is not None and self.scheme.learns and isinstance(self.scheme, LearnedScale):
            return self._learned(self.scheme, x, floor, ceiling)
        if self.phase is Phase.ADAPT and self.observer is not None:
            self.observer.observe(x.detach(), floor, ceiling)
            self.refresh()
        elif exporting():
            return self._export(x, floor, ceiling)
        if self.scheme is not None and not self.scheme.is_uniform:
            grid = kernel.Grid(self.scale, *((end - self.zero_point).to(torch.float32) for end in self.qparams[2:]))
            return self.scheme(x, grid, Manner(self.spec.rounding, floor, ceiling))
        grid = kernel.grid_of(self.qparams, floor, ceiling, self.spec.rounding)
        return kernel.fake_quantize(x, grid, self.spec.rounding, floor, ceiling, overwrite=fresh)

    def _learned(self, scheme: LearnedScale, x: Tensor, floor: float | None, ceiling: float | None) -> Tensor:
        """`x` at the numbers that are being learned; starts them first, where they have not yet."""
        if scheme.is_starting and x.numel() > 0 and self.observer is not None:
            self.observer.observe(x.detach(), floor, ceiling)
            self._start(scheme)
        scale, zero_point = scheme.numbers(self.qparams, x.numel())
        with torch.no_grad():
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)
        grid = kernel.Grid(scale, self.quant_min - zero_point, self.quant_max - zero_point)
        return scheme(x, grid, Manner(self.spec.rounding, floor, ceiling))

    @torch.no_grad()
    def _start(self, scheme: LearnedScale) -> None:
        assert self.observer is not None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self.observer.merge_processes()
        ends = self.observer.range()
        scheme.start(*ends)
        scheme.count()
        self.take(*ends)

    def _export(self, x: Tensor, floor: float | None, ceiling: float | None) -> Tensor:
        """What an exporter that was handed the prepared network itself reads: activation, QuantizeLinear,
        DequantizeLinear. The code bounds were read when the network went into evaluation.
        """
        require_uniform(self.scheme, self.name)
        x = clip(x, floor, ceiling, fresh=False)
        dtype = torch.int8 if self.bounds[0] < 0 else torch.uint8
        codes = quantize(x, self.scale, self.zero_point.to(dtype))
        limits = torch.iinfo(dtype)
        if self.bounds != (limits.min, limits.max):
            codes = codes.clamp(*self.bounds)
        return dequantize(codes, self.scale, self.zero_point.to(dtype))

    def read_bounds(self) -> None:
        """Takes the code bounds from their buffers, so that an export does not have to."""
        self.bounds = int(self.quant_min), int(self.quant_max)

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the observer's range, in place, so that whoever holds the buffers sees it."""
        self.take(*((self.fixed or (0.0, 0.0)) if self.observer is None else self.observer.range()))

    @torch.no_grad()
    def take(self, low: float | Tensor, high: float | Tensor) -> None:
        """Takes over the range from `low` to `high`, in place."""
        for key, value in self._parameters_of(low, high)._asdict().items():
            getattr(self, key).copy_(value)

    def finish(self) -> None:
        """Ends an observation: the range must be usable. Raises CalibrationError when it is not."""
        if not self.observed:
            return
        extremes = [] if self.observer is None else [self.observer.low, self.observer.high]
        if not all(bool(torch.isfinite(end).all()) for end in extremes):
            found = [end.tolist() for end in extremes]
            raise CalibrationError(
                f"The tensor {self.name!r} held NaN or infinity during calibration (range {found}). "
                "Look at the data, and at the layers before it, with torch.autograd.detect_anomaly or by hand."
            )
        self.refresh()

    def extra_repr(self) -> str:
        return f"{self.name}, {self.spec.bits} bits"


def clip(x: Tensor, floor: float | None, ceiling: float | None, fresh: bool) -> Tensor:
    """The activation function that a quantizer absorbs, by itself."""
    if floor is None and ceiling is None:
        return x
    if fresh and not (torch.is_grad_enabled() and x.requires_grad):
        return x.clamp_(floor, ceiling)
    if floor is not None and ceiling is not None:
        return torch.nn.functional.hardtanh(x, floor, ceiling)  # its gradient is several times quicker than clamp's
    return torch.relu(x) if floor == 0.0 else x.clamp(floor, ceiling)
