"""Rounding a weight so that the errors of its inputs' channels cancel, without training and without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from edgeq.recovery.registry import LAYER_STEPS

if TYPE_CHECKING:
    from edgeq.modules.layer import QuantizedLayer
    from edgeq.modules.operation import Operation

DAMPING = 0.01  # of the mean second moment, added to each: keeps few samples from being trusted too far
POSITIONS = 1 << 15  # rows of the input matrix that are used at the most


@LAYER_STEPS.register("compensated_rounding")
def compensated_rounding(layer: QuantizedLayer, x: Tensor) -> None:
    """Chooses the layer's weight codes by optimal-brain compensation (Frantar and Alistarh, arXiv 2208.11580;
    GPTQ, arXiv 2210.17323): inputs are taken one after the other, greatest second moment first; each column of
    the weight is rounded, and its error is made good, as far as the inputs' covariance allows, by the columns
    that are yet to be rounded. The result is kept as offsets from the nearest codes; the weight itself stays.

    Layers without an input matrix (transposed, three-dimensional or padded in a special way) keep nearest rounding.
    """
    operation, quantizer = layer.operation, layer.weight_quantizer
    weight, _ = layer.folded(layer.weight, layer.bias)
    offset = quantizer.offset
    if offset is None:
        return
    offset.zero_()
    if not has_input_matrix(operation):
        return
    rows = operation.rows(weight).to(torch.float64)
    scale = quantizer.scale.to(torch.float64).expand(len(rows))
    moments = second_moments(operation, weight, x)  # (groups, inputs, inputs)
    codes = torch.empty_like(rows)
    outputs = len(rows) // operation.groups
    for group in range(operation.groups):
        part = slice(group * outputs, (group + 1) * outputs)
        codes[part] = round_rows(rows[part], scale[part], moments[group], quantizer.codes_min, quantizer.codes_max)
    quantizer.keep_codes(weight, operation.from_rows(codes, weight))


def has_input_matrix(operation: Operation) -> bool:
    """Whether what an output position sees is known here."""
    return not operation.transposed and operation.function != "conv3d" and operation.padding_mode == "zeros"


def second_moments(operation: Operation, weight: Tensor, x: Tensor) -> Tensor:
    """Mean of the outer product of the inputs that an output position sees; (groups, inputs, inputs), float64."""
    columns = input_columns(operation, weight, x)
    columns = columns[:: max(1, len(columns) // POSITIONS)]
    moments = torch.einsum("pgi,pgj->gij", columns, columns).to(torch.float64) / len(columns)
    inputs = moments.shape[-1]
    level = moments.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    return moments + DAMPING * level[:, None, None] * torch.eye(inputs, dtype=torch.float64, device=x.device)


def input_columns(operation: Operation, weight: Tensor, x: Tensor) -> Tensor:
    """The inputs of each output position, shape (positions, groups, inputs)."""
    if operation.function == "linear":
        return x.reshape(-1, 1, x.shape[-1])
    kernel = tuple(weight.shape[2:])
    x = x[None] if x.dim() < weight.dim() else x  # a convolution takes single samples too
    options = {name: _per_dimension(value, len(kernel)) for name, value in operation.options if name != "padding"}
    stride, dilation = options["stride"], options["dilation"]
    padding = dict(operation.options)["padding"]
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        x = functional.pad(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)])
        padding = 0
    padding = _per_dimension(padding, len(kernel))
    if len(kernel) == 1:  # one dimension as two, the first of extent one
        x, kernel, padding = x[:, :, None], (1, *kernel), (0, *padding)
        stride, dilation = (1, *stride), (1, *dilation)
    unfolded = functional.unfold(x, kernel, dilation, padding, stride)  # (batch, channels * kernel, positions)
    grouped = unfolded.reshape(len(x), operation.groups, -1, unfolded.shape[-1])
    return grouped.permute(0, 3, 1, 2).flatten(0, 1)


def _per_dimension(value: int | tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    return (value,) * dimensions if isinstance(value, int) else tuple(value)


def round_rows(rows: Tensor, scale: Tensor, moments: Tensor, codes_min: int, codes_max: int) -> Tensor:
    """Codes of a weight matrix (outputs, inputs) with one scale an output, for inputs of those second moments."""
    order = torch.argsort(moments.diagonal(), descending=True)
    left = (rows / scale[:, None])[:, order]  # in steps, what is still to be represented
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments[order][:, order]))
    spread = torch.linalg.cholesky(inverse, upper=True)
    codes = torch.empty_like(left)
    for column in range(left.shape[1]):
        codes[:, column] = torch.round(left[:, column]).clamp(codes_min, codes_max)
        error = (left[:, column] - codes[:, column]) / spread[column, column]
        left[:, column + 1 :].addr_(error, spread[column, column + 1 :], alpha=-1)
    return codes[:, torch.argsort(order)]
