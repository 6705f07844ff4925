"""An operation that an exporter of PyTorch's does not know: what the error says, and what edgeq writes itself."""

import pytest
import torch
from torch import nn

from edgeq.errors import ExportError
from tests.onnx.ort import calibrated_on, nodes_of, written


class Behind(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.function = nn.Conv2d(3, 4, 1), function

    def forward(self, x):
        return self.function(self.conv(x))


def image():
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("opset", "function", "named"),
    [
        (17, torch.frac, "aten::frac"),
        (17, nn.CrossMapLRN2d(3), "aten::pow"),
        (18, lambda x: x.masked_select(x > 0), "aten.masked_select"),
    ],
)
def test_the_error_names_the_operation_and_the_other_exporter(opset, function, named, capsys, tmp_path):
    module = calibrated_on(Behind(function), image()).convert()
    with pytest.raises(ExportError, match=f"cannot write the network at opset {opset}: .*{named}") as caught:
        module.export(image(), tmp_path / "model.onnx", opset_version=opset)
    assert "try another opset_version" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_whatever_an_exporter_raises_is_the_same_error(tmp_path):
    unpool = Behind(lambda x: nn.functional.max_unpool2d(x, torch.zeros_like(x).long(), 2))
    module = calibrated_on(unpool, image()).convert()  # torch.onnx raises a TypeError, none of its own errors
    with pytest.raises(ExportError, match="cannot write the network at opset 17"):
        module.export(image(), tmp_path / "model.onnx")


@pytest.mark.parametrize("norm", [nn.RMSNorm(6), nn.RMSNorm([6, 6], eps=0.1), nn.RMSNorm(6, elementwise_affine=False)])
def test_an_rms_norm_is_written_at_opset_17_too(norm):
    if norm.weight is not None:
        norm.weight.data.uniform_(0.5, 2)
    model = calibrated_on(Behind(norm), image())
    file = written(model.convert(), image())
    assert [len(nodes_of(file, kind)) for kind in ("ReduceMean", "Sqrt", "Div")] == [1, 1, 1]
    assert len(nodes_of(file, "Mul")) == (1 if norm.weight is None else 2)


def test_its_file_computes_what_the_network_does(tmp_path):
    result = calibrated_on(Behind(nn.RMSNorm(6)), image()).convert().export(image(), tmp_path / "model.onnx")
    assert result.passed, str(result)
