"""What PyTorch's exporter writes wrongly, or not at all, is written as ONNX means it."""

import pytest
import torch
from torch import nn

from tests.graph.parity import calibrated, images


class Tiled(nn.Module):
    """A window of biases that is repeated as often as it fits into the image."""

    def __init__(self, tile):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.window = nn.Parameter(torch.randn(1, 8, 2, 2))
        self.tile = tile

    def forward(self, x):
        y = self.conv(x)
        return self.last(y + self.tile(self.window, y.shape[-2] // 2, y.shape[-1] // 2))


TILES = {
    "fewer repeats than dimensions": lambda window, h, w: window.tile((h, w)),
    "as many": lambda window, h, w: torch.tile(window, (1, 1, h, w)),
    "more": lambda window, h, w: window[0, 0].tile((1, 1, h, w)),
    "constant": lambda window, h, w: window.tile((4, 4)),
}


@pytest.mark.parametrize("name", TILES)
def test_tile_is_one_node_of_its_name(name, tmp_path):
    model, x = Tiled(TILES[name]).eval(), images(2, 3, 8, 8)
    wrapped = calibrated(model, x)
    result = wrapped.export(x, tmp_path / "model.onnx", opset_version=17)
    assert result.passed
    import onnx

    operations = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert "If" not in operations
    assert operations.count("Tile") == (0 if name == "constant" else 1)
