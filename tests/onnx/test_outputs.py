"""Networks that return more, or other things, than tensors in tuples."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import edgeq

Pair = namedtuple("Pair", "first second")


@dataclass
class Output(dict):
    """As Hugging Face's models have them."""

    logits: Any = None
    features: Any = None

    def __post_init__(self):
        self.update({key: value for key, value in vars(self).items() if value is not None})


@dataclass
class Record:
    logits: Any
    features: Any = None


RESULTS = {
    "a dict with None": (lambda x, y: {"x": x, "none": None, "y": y}, ["x", "y"]),
    "a tuple with None": (lambda x, y: (x, None, [y, None]), ["output_0", "output_2_0"]),
    "sizes and text": (lambda x, y: (x, x.shape, y.shape[-1], 3, "text", y), ["output_0", "output_5"]),
    "a named tuple": (lambda x, y: Pair(x, {"deep": y}), ["first", "second_deep"]),
    "a named tuple with None": (lambda x, y: Pair(None, y), ["second"]),
    "a dataclass": (lambda x, y: Record(x, y), ["logits", "features"]),
    "a dataclass with None": (lambda x, y: Record(y), ["logits"]),
    "a dict with fields": (lambda x, y: Output(features=x), ["features"]),
    "dataclasses in a dict": (lambda x, y: {"a": Record(x, Record(y)), "b": y}, ["a_logits", "a_features_logits", "b"]),
}


class Returning(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Conv2d(3, 4, 3), kind

    def forward(self, image):
        y = self.layer(image)
        return RESULTS[self.kind][0](y, torch.relu(y) * 2)


def calibrated(kind):
    torch.manual_seed(0)
    return edgeq.PTCFxModule(Returning(kind).eval()).calibrate([torch.randn(2, 3, 8, 8)])


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("kind", RESULTS)
def test_the_outputs_of_a_file_are_the_tensors_that_a_network_returns(kind, opset, tmp_path):
    wrapped, image = calibrated(kind), torch.randn(2, 3, 8, 8)
    result = wrapped.export(image, tmp_path / "file.onnx", opset)
    outputs = onnx.load(result.path).graph.output
    assert [output.name for output in outputs] == RESULTS[kind][1]
    assert result.passed
    assert all(parity.exact_outputs > 99 for parity in result.parity)


def test_sizes_that_are_returned_do_not_hinder_a_file_for_any_batch(tmp_path):
    wrapped = calibrated("sizes and text")
    result = wrapped.export(torch.randn(2, 3, 8, 8), tmp_path / "file.onnx", dynamic_batch=True)
    outputs = onnx.load(result.path).graph.output
    assert [output.type.tensor_type.shape.dim[0].dim_param for output in outputs] == ["batch", "batch"]
