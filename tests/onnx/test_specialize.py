"""Sizes in a file are numbers where they do not depend on the batch."""

import pytest
import torch
from torch import nn

import edgeq

SHAPES = {"Shape", "Gather", "Slice", "Div"}  # what is written for sizes that are worked out in the file


class Halves(nn.Module):
    """A convolution, cut in two along `dim` by `cut`, and a convolution of each half."""

    def __init__(self, cut):
        super().__init__()
        self.cut, self.first, self.second = cut, nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        one, other = self.cut(self.first(x))
        return self.second(one) + self.second(other)


CUTS = {
    "method": lambda x: x.chunk(2, 1),
    "function": lambda x: torch.chunk(x, 2, dim=1),
    "from behind": lambda x: x.chunk(chunks=2, dim=-3),
    "in float": lambda x: torch.erf(x).chunk(2, 1),
    "function in float": lambda x: torch.chunk(input=torch.erf(x), chunks=2, dim=1),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_chunk_is_one_split(cut, tmp_path):
    model = edgeq.PTCFxModule(Halves(cut), "WC8_AT8", "onnxruntime")
    model.calibrate([torch.randn(4, 3, 8, 8)])
    result = model.export(torch.randn(4, 3, 8, 8), tmp_path / "model.onnx", opset_version=17, dynamic_batch=True)
    assert result.passed
    assert result.nodes["Split"] == 1
    assert not SHAPES & set(result.nodes)


def test_a_chunk_of_the_batch_stays_one(tmp_path):
    model = edgeq.PTCFxModule(nn.Sequential(nn.Conv2d(3, 4, 3), Batch()), "WC8_AT8", "onnxruntime")
    model.calibrate([torch.randn(4, 3, 8, 8)])
    path = tmp_path / "model.onnx"
    result = model.export(torch.randn(4, 3, 8, 8), path, opset_version=17, dynamic_batch=True)
    assert result.passed
    assert all(parity.passed for parity in model.verify(path, torch.randn(6, 3, 8, 8)))


class Batch(nn.Module):
    """The mean of both halves of a batch."""

    def forward(self, x):
        one, other = x.chunk(2)
        return one + other
