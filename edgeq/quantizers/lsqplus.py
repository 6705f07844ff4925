"""LSQ+: an offset is learned beside the step (Bhalgat et al., "LSQ+", CVPR Workshops 2020, arXiv 2004.09576)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgeq.quantizers.kernel import with_gradient_of
from edgeq.quantizers.lsq import LSQ
from edgeq.quantizers.registry import QUANTIZERS
from edgeq.quantizers.scheme import gradient_factor
from edgeq.quantizers.straight_through import gradient_times

if TYPE_CHECKING:
    from edgeq.qparams import QParams
    from edgeq.spec import TensorSpec


@QUANTIZERS.register("lsqplus")
class LSQPlus(LSQ):
    """LSQ whose range begins at a learned offset b: the gradient in b is one outside of the range and zero inside. The
    zero point is ``least code - b / s``, rounded straight through, so that zero stays exactly representable, as
    hardware wants it; the paper's is any real number. Of an affine tensor the range of least squared error, which the
    paper begins with, is the observer "squared_error".

    Parameters: `step`; and, of an affine tensor, `offset`, the same shape. A symmetric one, as weights are, has none.
    """

    def __init__(self, spec: TensorSpec, channels: int | None = None, *, batches: int = 1) -> None:
        super().__init__(spec, channels, batches=batches)
        self.offset = None if spec.symmetric else nn.Parameter(torch.zeros(self.shape, dtype=torch.float32))

    @torch.no_grad()
    def start(self, low: Tensor, high: Tensor) -> None:
        super().start(low, high)
        if self.offset is not None:
            self.offset.copy_(low.clamp(max=0.0))

    def numbers(self, qparams: QParams, elements: int) -> tuple[Tensor, Tensor]:
        scale, zero_point = super().numbers(qparams, elements)
        if self.offset is None:
            return scale, zero_point
        begin = gradient_times(self.offset, gradient_factor(qparams, elements))
        return scale, zero_point_of(begin, scale, qparams)


def zero_point_of(begin: Tensor, scale: Tensor, qparams: QParams) -> Tensor:
    """The zero point, floating, of a range that begins at `begin`; its gradient is that of the real number."""
    real = qparams.quant_min - begin / scale
    code = torch.round(real.detach()).clamp(qparams.quant_min, qparams.quant_max)
    return with_gradient_of(real, code)
