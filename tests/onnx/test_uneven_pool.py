"""Adaptive average pools that ONNX has no operator for are written as matrix products."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import edgeq
from edgeq.onnx.uneven_pool import UnevenPool, window_means


@pytest.mark.parametrize(
    ("sizes", "outputs"), [((7,), (3,)), ((2, 2), (6, 6)), ((13, 8), (6, 5)), ((5, 4, 3), (2, 3, 2))]
)
def test_the_products_are_the_adaptive_pool(sizes, outputs):
    x = torch.randn(2, 3, *sizes, dtype=torch.float64)
    pool = UnevenPool(sizes, outputs).double()
    expected = getattr(functional, f"adaptive_avg_pool{len(sizes)}d")(x, outputs)
    assert (pool(x) - expected).abs().max() < 1e-7  # the reciprocals are float32


def test_each_window_counts_once():
    means = window_means(7, 3)
    assert torch.allclose(means.sum(0), torch.ones(3))
    assert (means > 0).sum(0).tolist() == [3, 3, 3]


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("kind", ["module", "function"])
def test_a_network_with_uneven_windows_is_exported_and_compared(kind, opset, tmp_path):
    class Uneven(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.head = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d((3, 2)), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.conv(x)
            return self.head(self.pool(x) if kind == "module" else functional.adaptive_avg_pool2d(x, (3, 2)))

    torch.manual_seed(0)
    model, x = edgeq.PTCFxModule(Uneven().eval()), torch.randn(16, 3, 12, 9)
    model.train()
    model(x)
    result = model.eval().export(x, tmp_path / "uneven.onnx", opset_version=opset)
    assert result.passed
    assert result.nodes.get("MatMul", 0) == 2
    assert result.nodes["QuantizeLinear"] == 4
