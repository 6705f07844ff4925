"""A layer computed as integer hardware does, written anew: sums of integers in float64, which holds them exactly,
then one multiplication and one rounding. Nothing of edgeq computes here.
"""

import copy

import numpy as np
import torch
from torch import nn

import edgeq

ROUNDINGS = {
    "half_even": np.rint,
    "half_up": lambda x: np.floor(x + 0.5),
    "half_away": lambda x: np.copysign(np.floor(np.abs(x) + 0.5), x),
    "floor": np.floor,
}


def calibrated(*modules, x, rounding="half_even", preset="WC8_AT8", bias_bits=32, reduce_range=False):
    """A wrapped chain of `modules`, in evaluation, with its biases as the user's."""
    backend = {"rounding": rounding, "bias": {"bits": bias_bits}, "reduce_range": reduce_range}
    wrapped = edgeq.PTCFxModule(nn.Sequential(*modules), preset, backend, bias_calibration_factor=0)
    return wrapped.calibrate([x])


def set_codes(quantizer, scale, zero_point=0, signed=False):
    """Gives a tensor quantizer another scale, zero point and sign, as a checkpoint would."""
    with torch.no_grad():
        quantizer.scale.fill_(scale)
        quantizer.zero_point.fill_(zero_point)
        quantizer.quant_min.fill_(-128 if signed else 0)
        quantizer.quant_max.fill_(127 if signed else 255)
    quantizer.read_bounds()


def extreme_codes(quantizer, shape, seed=0):
    """Codes of the whole range, half of them the least or the greatest, int64."""
    generator = torch.Generator().manual_seed(seed)
    low, high = int(quantizer.quant_min), int(quantizer.quant_max)
    codes = torch.randint(low, high + 1, shape, generator=generator)
    ends = torch.where(torch.rand(shape, generator=generator) < 0.5, low, high)
    return torch.where(torch.rand(shape, generator=generator) < 0.5, ends, codes)


def real(codes, quantizer):
    """The numbers that codes stand for, float32."""
    return (codes - int(quantizer.zero_point)).to(torch.float32) * quantizer.scale


def weight_codes(layer):
    """The integers of a weight without batch norm, one scale a channel or one in all."""
    scale = layer.weight_quantizer.scale.numpy()
    axis = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
    weight = layer.weight.detach().numpy()
    if scale.ndim:
        scale = scale.reshape([-1 if dim == axis else 1 for dim in range(weight.ndim)])
    low, high = layer.weight_quantizer.codes_min, layer.weight_quantizer.codes_max
    return np.clip(np.rint(weight / scale), low, high).astype(np.int64)


def channel_scales(layer):
    """The weight's scale for each output channel, or one in all; groups of a transposed one share theirs."""
    scale = layer.weight_quantizer.scale.numpy()
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    return np.tile(scale, layer.groups) if transposed and scale.ndim else scale


def bias_codes(layer, bits=32):
    """The integers of a bias. Those of 32 bits end where float32, in which biases are written, ends."""
    scale = layer.site.source.scale.numpy() * channel_scales(layer)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - (1 if bits < 26 else 128)
    codes = np.rint(layer.bias.detach().numpy() / scale)
    return np.clip(codes.astype(np.float64), low, high).astype(np.int64)


def accumulator(layer, codes, bias_bits=32):
    """The integers that a layer sums up from the codes of its input, int64."""
    kind = next(base for base in type(layer).__mro__ if base.__module__.startswith("torch.nn.modules"))
    plain = copy.copy(layer)
    plain.__class__ = kind  # the float layer, with its strides, paddings and groups
    plain._parameters, plain._buffers = dict(layer._parameters), {}
    plain.weight = nn.Parameter(torch.from_numpy(weight_codes(layer)).double())
    plain.bias = None if layer.bias is None else nn.Parameter(torch.from_numpy(bias_codes(layer, bias_bits)).double())
    with torch.no_grad():
        sums = plain((codes - int(layer.site.source.zero_point)).double())
    assert sums.abs().max() < 2**53
    return sums.to(torch.int64)


def output_codes(sums, factor, target, axis, rounding="half_even", floor=None, ceiling=None):
    """Integer sums as codes of `target`, int64; `factor`, float32, of shape () or (channels,) along `axis`."""
    sums, scale, zero_point = sums.numpy(), target.scale.numpy(), int(target.zero_point)
    if factor.ndim:
        factor = factor.reshape([-1 if dim == axis % sums.ndim else 1 for dim in range(sums.ndim)])
    scaled = sums.astype(np.float32) * factor
    assert scaled.dtype == np.float32
    codes = ROUNDINGS[rounding](scaled.astype(np.float64)) + zero_point
    low = int(target.quant_min) if floor is None else max(int(target.quant_min), zero_point + round(floor / scale))
    high = int(target.quant_max) if ceiling is None else min(int(target.quant_max), zero_point + round(ceiling / scale))
    return torch.as_tensor(np.clip(codes, low, high).astype(np.int64))


def layer_codes(layer, codes, rounding="half_even", bias_bits=32, floor=None, ceiling=None):
    """The output codes of a quantized layer for the codes of its input, int64."""
    source, target = layer.site.source, layer.site.target
    factor = source.scale.numpy() * channel_scales(layer) / target.scale.numpy()
    axis = -1 if isinstance(layer, nn.Linear) else -(layer.weight.dim() - 1)
    sums = accumulator(layer, codes, bias_bits)
    return output_codes(sums, factor, target, axis, rounding, floor, ceiling)
