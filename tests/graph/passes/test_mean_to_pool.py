"""A mean over all positions of a map, however it is spelled, becomes a global average pool."""

import pytest
import torch
from torch import nn

import edgeq
from tests.graph.parity import calibrated, images
from tests.graph.passes.networks import assert_files_agree, assert_same_function, changes, kinds, only

NAME = "mean_to_pool"
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Head(nn.Module):
    """Convolution, a reduction, and a linear layer over what is left."""

    def __init__(self, reduce, dimensions=2, keeps=False):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = CONVOLUTIONS[dimensions](3, 8, 3), nn.Linear(8, 5)
        self.reduce, self.keeps = reduce, keeps

    def forward(self, x):
        y = self.reduce(torch.relu(self.conv(x)))
        return self.linear(y.flatten(1) if self.keeps else y)


SPELLINGS = {
    "method": (lambda x: x.mean((2, 3)), 2),
    "list": (lambda x: x.mean([2, 3]), 2),
    "from the last": (lambda x: x.mean((-1, -2)), 2),
    "mixed": (lambda x: x.mean(dim=(-2, 3)), 2),
    "function": (lambda x: torch.mean(x, (2, 3)), 2),
    "by name": (lambda x: torch.mean(x, dim=[2, 3], keepdim=False), 2),
    "axis": (lambda x: torch.mean(x, axis=(2, 3)), 2),
    "one after the other": (lambda x: x.mean(3).mean(2), 2),
    "the other way": (lambda x: x.mean(2).mean(-1), 2),
    "signal": (lambda x: x.mean(2), 1),
    "signal, last": (lambda x: x.mean(-1), 1),
    "volume": (lambda x: x.mean((2, 3, 4)), 3),
    "volume, in steps": (lambda x: x.mean((3, 4)).mean(2), 3),
}
KEEPING = {
    "method": (lambda x: x.mean((2, 3), keepdim=True), 2),
    "position": (lambda x: x.mean((2, 3), True), 2),
    "function": (lambda x: torch.mean(x, (2, 3), True), 2),
    "in steps": (lambda x: x.mean(2, keepdim=True).mean(3, keepdim=True), 2),
    "signal": (lambda x: x.mean(-1, keepdim=True), 1),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_mean_is_a_pool_and_a_flattening(spelling):
    reduce, dimensions = SPELLINGS[spelling]
    x = images(4, 3, *(9, 7, 5)[:dimensions])
    wrapped = assert_same_function(lambda: Head(reduce, dimensions).eval(), NAME, x)
    assert kinds(wrapped)[1:-1] == [f"adaptive_avg_pool{dimensions}d", "flatten"]
    assert len(wrapped.module.changes.each) == 1


@pytest.mark.parametrize("spelling", KEEPING)
def test_dimensions_that_are_kept_need_no_flattening(spelling):
    reduce, dimensions = KEEPING[spelling]
    x = images(4, 3, *(9, 7, 5)[:dimensions])
    wrapped = assert_same_function(lambda: Head(reduce, dimensions, keeps=True).eval(), NAME, x)
    assert kinds(wrapped)[1:-1] == [f"adaptive_avg_pool{dimensions}d", "flatten"]


def test_a_map_without_a_batch_is_averaged_rightly():
    class Single(Head):
        def forward(self, x):
            return self.linear(self.conv(x).mean((-2, -1)))

    x = images(4, 3, 9, 7)
    wrapped = calibrated(Single(None).eval(), x, rewrites=only(NAME))
    with torch.no_grad():
        assert torch.equal(wrapped(x[0]), wrapped(x)[0])


@pytest.mark.parametrize("reduce", [
    lambda x: x.mean((2, 3), dtype=torch.float64).float(),
    lambda x: x.mean(3).flatten(1)[:, :8],
    lambda x: x.mean((1, 2, 3), keepdim=True).flatten(1).expand(-1, 8),
    lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    lambda x: x.sum((2, 3)),
], ids=["type", "columns", "everything", "channels last", "sum"])  # fmt: skip
def test_other_reductions_stay(reduce):
    assert changes(Head(reduce).eval(), NAME, images(4, 3, 9, 7)) == ()


def test_a_mean_of_tokens_stays():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.linear(x).mean(1)), self.linear(x).mean(2)

    assert changes(Tokens().eval(), NAME, images(2, 5, 6)) == ()


def test_without_a_layer_in_front_the_example_inputs_tell_the_dimensions():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x):
            return self.linear(x.mean((2, 3)))

    assert changes(Pooled().eval(), NAME) == ()
    assert len(changes(Pooled().eval(), NAME, images())) == 1


def test_the_name_of_the_node_and_its_quantizer_stay():
    x, names = images(4, 3, 9, 7), []
    for wanted in (True, False):
        wrapped = edgeq.PTCFxModule(Head(SPELLINGS["method"][0]).eval(), rewrites=only(NAME, wanted), example_inputs=x)
        names.append([quantizer.name for quantizer in wrapped.module.quantizers()])
    assert names[0] == names[1] == ["x", "conv", "mean", "linear"]


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
def test_files_agree_and_hold_a_global_pool(preset, tmp_path):
    import onnx

    x = images(4, 3, 9, 7)
    wrapped = calibrated(Head(SPELLINGS["method"][0]).eval(), x, preset=preset, rewrites=only(NAME))
    assert_files_agree(wrapped, x, folder=tmp_path)
    kinds_of = {node.op_type for node in onnx.load(tmp_path / "qdq.onnx").graph.node}
    assert "GlobalAveragePool" in kinds_of
    assert "ReduceMean" not in kinds_of


def test_it_is_as_accurate_as_the_mean():
    x = images(32, 3, 9, 7)
    expected = Head(SPELLINGS["method"][0]).eval()(x)
    errors = [
        float((calibrated(Head(SPELLINGS["method"][0]).eval(), x, rewrites=only(NAME, wanted))(x) - expected).norm())
        for wanted in (True, False)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)
