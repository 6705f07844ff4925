"""What a layer norm does before its weight and bias, in the operations that an importer of TIDL recognizes."""

from __future__ import annotations

from torch import Tensor, nn


class Normalization(nn.Module):
    """Zero mean and unit variance over the last `dimensions` of a tensor of any shape:
    ``(x - mean) / sqrt(mean((x - mean)**2) + eps)``.

    In an exported file these are ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt and Div, the pattern that TI's
    importer takes for a layer norm (edgeai-tidl-tools, docs/tidl_fsg_vtfr.md).
    """

    def __init__(self, dimensions: int, eps: float) -> None:
        super().__init__()
        self.dimensions, self.eps = dimensions, eps

    def forward(self, x: Tensor) -> Tensor:
        last = tuple(range(-self.dimensions, 0))
        centred = x - x.mean(last, keepdim=True)
        return centred / (centred.pow(2).mean(last, keepdim=True) + self.eps).sqrt()

    def extra_repr(self) -> str:
        return f"{self.dimensions} dimensions, eps {self.eps:g}"
