"""What stands next to a layer, folded into its weight and bias: in float64 the same function."""

import itertools

import pytest
import torch
from torch import nn

from edgeq.modules.folding import Folds
from edgeq.modules.operation import Operation
from edgeq.quantizers.weight import entry_scale

LAYERS = {
    "conv1d": (nn.Conv1d(6, 4, 3), nn.BatchNorm1d, 1),
    "conv2d": (nn.Conv2d(6, 4, 3, stride=2), nn.BatchNorm2d, 2),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.BatchNorm2d, 2),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d, 2),
    "conv3d": (nn.Conv3d(6, 4, 2), nn.BatchNorm3d, 3),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, groups=2), nn.BatchNorm2d, 2),
    "linear": (nn.Linear(6, 4), nn.BatchNorm1d, 0),
}


def lively(norm):
    generator = torch.Generator().manual_seed(norm.num_features)
    norm.running_mean.normal_(generator=generator)
    norm.running_var.uniform_(0.3, 2, generator=generator)
    if norm.affine:
        nn.init.normal_(norm.weight, generator=generator)
        nn.init.normal_(norm.bias, generator=generator)
    return norm.double().eval()


@pytest.mark.parametrize("case", LAYERS)
@torch.no_grad()
def test_weight_and_bias_hold_the_neighbours(case):
    layer, norm, dimensions = LAYERS[case]
    layer = layer.double()
    operation, weight = Operation.of_module(layer), layer.weight
    outputs = operation.channels(weight)
    x = torch.randn(3, 6, *(7,) * dimensions, dtype=torch.float64)
    befores = [None] if operation.transposed else [None, lively(norm(6)), lively(norm(6, affine=False))]
    norms = [None, lively(norm(outputs)), lively(norm(outputs, affine=False))]
    for before, behind, (factor, offset) in itertools.product(befores, norms, [(1.0, 0.0), (-0.5, 2.0)]):
        folds = Folds(before=before, norm=behind, factor=factor, offset=offset)
        expected = folds.around(operation, x, weight, layer.bias)
        assert torch.allclose(operation(x, *folds.fold(operation, weight, layer.bias)), expected, atol=1e-12)
        gain = folds.gain(operation, weight)
        assert torch.allclose(folds.fold(operation, weight, None)[0], weight * gain, atol=1e-12)
        assert folds.is_live is False
        assert len(folds.tensors) == 4 * len(folds.norms)


@torch.no_grad()
def test_a_shift_of_the_deployed_bias_is_one_of_the_parameter_that_it_moves_with():
    layer, shift = nn.Conv2d(6, 4, 1).double(), torch.randn(4, dtype=torch.float64)
    operation = Operation.of_module(layer)
    for norm in (None, lively(nn.BatchNorm2d(4)), lively(nn.BatchNorm2d(4, affine=False))):
        folds = Folds(norm=norm, factor=-0.5, offset=1.0)
        parameter = layer.bias if norm is None or norm.bias is None else norm.bias
        before = folds.fold(operation, layer.weight, layer.bias)[1]
        parameter.add_(folds.unfolded(shift))
        assert torch.allclose(folds.fold(operation, layer.weight, layer.bias)[1] - before, shift, atol=1e-12)


@torch.no_grad()
def test_a_weight_rounded_entry_by_entry_is_the_deployed_one_behind_the_norm():
    generator = torch.Generator().manual_seed(0)
    weight, gain = (torch.randn(shape, generator=generator) for shape in ((4, 3, 2, 2), (4, 3, 1, 1)))
    gain[:, 2] = 0.0
    gain[0, 1], gain[1:, 1] = 1e-3, 1e-4
    scale = torch.full((4, 1, 1, 1), 0.1)
    signed = entry_scale(scale, gain, weight, 1, 127)
    raw = (weight / signed).round() * signed
    deployed = (weight * gain / scale).round() * scale
    assert torch.allclose(raw[:, 0] * gain[:, 0], deployed[:, 0], atol=1e-6)
    assert (deployed[:, 1:] == 0).all()
    assert (raw[:, 1:] - weight[:, 1:]).abs().max() <= weight.abs().max() / 127  # fine steps, so that gamma can learn
    assert raw.isfinite().all()
