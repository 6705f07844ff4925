"""Transposed convolutions whose output size is said at the call, as decoders do that mirror an encoder."""

import pytest
import torch
from torch import nn

from tests.graph.parity import assert_exact, calibrated, images, relative_error

LAYERS = {
    1: (nn.Conv1d, nn.ConvTranspose1d, (2, 3, 9)),
    2: (nn.Conv2d, nn.ConvTranspose2d, (2, 3, 9, 8)),
    3: (nn.Conv3d, nn.ConvTranspose3d, (2, 3, 5, 8, 7)),
}


class Mirrored(nn.Module):
    """Down by a stride, and up again to the very size."""

    def __init__(self, dimensions, size, **options):
        super().__init__()
        torch.manual_seed(0)
        down, up, _ = LAYERS[dimensions]
        self.down, self.up = down(3, 6, 3, 2, 1), up(6, 4, 3, 2, 1, **options)
        self.last, self.size = down(4, 2, 1), size

    def forward(self, x):
        return self.last(torch.relu(self.up(self.down(x), **self.size(x))))


SIZES = {
    "the last dimensions": lambda x: {"output_size": x.shape[2:]},
    "all": lambda x: {"output_size": (x.shape[0], 4, *(x.shape[dim] for dim in range(2, x.dim())))},
    "a list": lambda x: {"output_size": [x.size(dim) for dim in range(2, x.dim())]},
}


@pytest.mark.parametrize("dimensions", LAYERS)
def test_the_output_has_the_size_and_the_numbers(dimensions, tmp_path):
    x = images(*LAYERS[dimensions][2])
    model = Mirrored(dimensions, lambda x: {"output_size": [x.size(dim) for dim in range(2, dimensions + 2)]}).eval()
    wrapped = calibrated(model, x, bias_calibration_factor=0.0)
    assert len(wrapped.module.quantized_layers()) == 3
    (output,) = assert_exact(wrapped, x)
    assert relative_error(output, model(x)) < 0.03
    assert torch.allclose(wrapped.module.run_float(x), model(x), atol=1e-5)
    assert wrapped.export(x, tmp_path / "model.onnx").passed


@pytest.mark.parametrize("name", ["a list", "the last dimensions"])
@pytest.mark.parametrize("groups", [1, 2])
def test_another_size_is_another_output(name, groups):
    model = Mirrored(2, SIZES[name], groups=groups).eval()
    x = images(2, 3, 9, 8)
    wrapped = calibrated(model, x, example_inputs=x, bias_calibration_factor=0.0)
    for shape in ((2, 3, 9, 8), (2, 3, 8, 9), (3, 3, 12, 7)):
        other = images(*shape, seed=2)
        assert_exact(wrapped, other)
        assert wrapped(other).shape == model(other).shape
        assert torch.allclose(wrapped.module.run_float(other), model(other), atol=1e-5)
