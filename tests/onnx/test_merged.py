"""Tensors that a network computes twice alike: an exporter may write them once, and both are compared all the same."""

import json

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgeq.errors import ExportError
from edgeq.onnx.verify import MERGED, compare, expose
from tests.onnx.ort import calibrated_on


class Twice(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.function = nn.Conv2d(3, 4, 3), function

    def forward(self, x):
        y = self.layer(x)
        return self.function(y) * y + self.function(y)


class SelfAttention(nn.Module):
    """Queries, keys and values are the same input, turned the same way three times."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        y = x.flatten(2).transpose(0, 1)[..., :8]
        return self.attention(y, y, y)[0]


MODELS = [Twice(torch.sigmoid), Twice(functional.gelu), Twice(lambda y: y.mean(1, keepdim=True)), SelfAttention()]


def image():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["qdq", "integer"])
@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("model", MODELS, ids=["sigmoid", "gelu", "mean", "attention"])
def test_each_is_compared(model, opset, kind, tmp_path):
    wrapped = calibrated_on(model, image(), preset="WC8SYMP2_AT8SYMP2")
    result = wrapped.export(image(), tmp_path / "file.onnx", opset, kind)
    network = wrapped.convert().module
    assert [len(parity.tensors) for parity in result.parity] == [len(network.tensors)] * 2
    assert result.passed
    merged = {prop.key: prop.value for prop in onnx.load(result.path).metadata_props}.get(MERGED)
    assert (merged is None) == (opset == 17)
    assert [parity.unequal for parity in compare(network, result.path, (image(),))] == [0, 0]


def test_a_tensor_that_is_not_in_the_file_in_any_form_is_still_missed():
    node = onnx.helper.make_node("Relu", ["x"], ["a/codes"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    model.metadata_props.add(key=MERGED, value=json.dumps({"b": "a"}))
    found = [value.name for value in expose(model, {"one": "a", "two": "b"}).graph.output]
    assert found == ["a/codes", "b/codes"]
    with pytest.raises(ExportError, match="lost 1 quantizers: c"):
        expose(model, {"one": "a", "three": "c"})
