"""A file for any batch size: no tensor in it may be said to have the example's."""

import onnx
import pytest
import torch
from torch import nn

from edgeq.onnx.verify import compare
from tests.onnx.ort import calibrated_on


class TimeFirst(nn.Module):
    """A batch of sequences that an encoder reads as PyTorch's has them by default, the batch second."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 3)

    def forward(self, x):
        y = self.encoder(x.transpose(0, 1))
        return self.head(y.mean(0)), y


class Folded(nn.Module):
    """Pixels as items of one large batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x):
        rows = self.layer(x.reshape(-1, 8)).relu()
        return self.head(rows), rows.reshape(x.shape[0], -1), rows.mean(0)


def sequences(batch):
    return torch.randn(batch, 6, 8, generator=torch.Generator().manual_seed(batch))


SIZES = {TimeFirst: [["batch", 3], [6, "batch", 8]], Folded: [["", 2], ["batch", 24], [4]]}


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("kind", ["qdq", "integer"])
@pytest.mark.parametrize("model", SIZES)
def test_a_batch_that_is_not_the_first_dimension_everywhere_is_open_all_the_same(model, kind, opset, tmp_path):
    wrapped = calibrated_on(model(), sequences(5), preset="WC8SYMP2_AT8SYMP2")
    result = wrapped.export(sequences(5), tmp_path / "file.onnx", opset, kind, dynamic_batch=True)
    assert result.passed
    file = onnx.load(result.path)
    shapes = [
        [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim] for value in file.graph.output
    ]
    if opset == 17:
        assert [[size if not str(size).startswith("unk") else "" for size in shape] for shape in shapes] == SIZES[model]
    known = [value.type.tensor_type.shape.dim for value in (*file.graph.value_info, *file.graph.output)]
    assert 5 not in {size.dim_value for dimensions in known for size in dimensions}
    for batch in (1, 7):
        assert all(parity.unequal == 0 for parity in compare(wrapped.convert().module, file, (sequences(batch),), None))
