"""Slices of slices become one, and slices that together are a tensor become a split."""

import pytest
import torch
from torch import nn

import edgeq
from tests.graph.parity import assert_exact, calibrated, images
from tests.graph.passes.networks import assert_files_agree, assert_same_function, changes, kinds, only

MERGE, SPLIT = "slice_merging", "slices_to_split"


class Cut(nn.Module):
    """Convolution, slices of what it gives, convolution."""

    def __init__(self, cut, channels=8, layer=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = layer or nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(channels, 4, 1)
        self.cut = cut

    def forward(self, x):
        return self.second(self.cut(self.first(x)))


CUTS = {
    "after": (lambda y: y[:, :, 1:][:, :, 2:6], (slice(None), slice(None), slice(3, 7))),
    "other dimensions": (lambda y: y[:, :, 1:][:, :, :, :-1], (slice(None), slice(None), slice(1, None), slice(-1))),
    "steps": (
        lambda y: y[:, :, 1:7:2][:, :, 1::2, ::2],
        (slice(None), slice(None), slice(3, 7, 4), slice(None, None, 2)),
    ),
    "end before": (lambda y: y[:, :, 2:4][:, :, :9], (slice(None), slice(None), slice(2, 4))),
    "batch": (lambda y: y[1:][1:, :, :4], (slice(2, None), slice(None), slice(None, 4))),
}


@pytest.mark.parametrize("name", CUTS)
def test_two_slices_are_one(name):
    cut, expected = CUTS[name]
    x = images(4, 3, 8, 8)
    wrapped = assert_same_function(lambda: Cut(cut).eval(), MERGE, x, bound=1e-7)
    (node,) = (node for node in wrapped.module.fx_graph.nodes if getattr(node.target, "__name__", "") == "getitem")
    found = [(part.start or None, part.stop, part.step if part.step != 1 else None) for part in node.args[1]]
    assert found == [(part.start or None, part.stop, part.step) for part in expected]


def test_three_slices_are_one():
    found = changes(Cut(lambda y: y[:, :, 1:][:, :, 1:][:, :, 1:]).eval(), MERGE)
    assert len(found) == 2
    assert all(change.difference == 0 for change in found)
    assert found[-1].what.endswith("-> [:, :, 3:]")


@pytest.mark.parametrize("cut", [
    lambda y: y[:, :, :-1][:, :, 1:],
    lambda y: y[:, :, 1:][:, :, -3:],
    lambda y: (lambda z: z[:, :, 1:] + z[:, :, :-1])(y[:, :, 1:]),
    lambda y: y[:, 0:1][:, [0] * 8],
    lambda y: y[:, :, 1:][..., 1:],
], ids=["end", "from the end", "read twice", "indices", "dots"])  # fmt: skip
def test_slices_whose_sum_depends_on_the_size_stay(cut):
    assert changes(Cut(cut).eval(), MERGE) == ()


PARTS = {
    "halves": (lambda y: torch.cat([y[:, 4:], y[:, :4].relu()], 1), [4, 4]),
    "uneven": (lambda y: torch.cat([y[:, 5:], y[:, :2], y[:, 2:5].relu()], 1), [2, 3, 3]),
    "ends said": (lambda y: torch.cat([y[:, 0:3], y[:, 3:8]], 1), [3, 5]),
    "from the end": (lambda y: torch.cat([y[:, :-2], y[:, -2:]], 1), [6, 2]),
    "all dimensions": (lambda y: torch.cat([y[:, :4, :, :], y[:, 4:, :, :]], 1), [4, 4]),
    "dots": (lambda y: torch.cat([y[..., 4:, :, :], y[..., :4, :, :]], 1), [4, 4]),
    "behind an activation": (lambda y: (lambda z: torch.cat([z[:, 4:], z[:, :4]], 1))(y.relu()), [4, 4]),
    "behind numbers": (lambda y: (lambda z: torch.cat([z[:, 4:], z[:, :4]], 1))(y.sigmoid() * 2), [4, 4]),
    "with the whole": (lambda y: torch.cat([y[:, 4:], y[:, :4]], 1) + y, [4, 4]),
}


@pytest.mark.parametrize("name", PARTS)
def test_slices_that_are_all_channels_are_a_split(name):
    cut, sizes = PARTS[name]
    wrapped = assert_same_function(lambda: Cut(cut).eval(), SPLIT, images(4, 3, 8, 8), bound=1e-7)
    (split,) = (node for node in wrapped.module.fx_graph.nodes if getattr(node.target, "__name__", "") == "split")
    assert split.args[1:] == (sizes, -3)
    assert kinds(wrapped).count("getitem") == len(sizes)
    assert {change.difference for change in wrapped.module.changes.each} == {0.0}


def test_the_features_of_a_linear_layer_are_split_too():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.up, self.down = nn.Linear(6, 8), nn.Linear(4, 3)

        def forward(self, x):
            y = self.up(x)
            return self.down(y[..., :4] * torch.sigmoid(y[..., 4:]))

    (change,) = changes(Gated().eval(), SPLIT)
    assert change.what == "2 slices -> a split into [4, 4]"
    wrapped = calibrated(Gated().eval(), images(2, 5, 6), rewrites=only(SPLIT))
    assert_exact(wrapped, images(2, 5, 6))


@pytest.mark.parametrize("cut", [
    lambda y: torch.cat([y[:, :4], y[:, 5:], y[:, :1]], 1),
    lambda y: torch.cat([y[:, :4], y[:, 3:7]], 1),
    lambda y: torch.cat([y[:, :4], y[:, :4]], 1),
    lambda y: torch.cat([y[:, ::2], y[:, 1::2]], 1),
    lambda y: torch.cat([y[:, :, :4], y[:, :, 4:]], 2),
    lambda y: torch.cat([y[:, :4, 1:], y[:, 4:, 1:]], 1),
    lambda y: torch.cat([y[:, :6], y[:, 6:7], y[:, 7]. unsqueeze(1)], 1),
], ids=["gap", "overlap", "twice", "steps", "rows", "two at once", "item"])  # fmt: skip
def test_slices_that_are_not_all_channels_once_stay(cut):
    assert changes(Cut(cut).eval(), SPLIT) == ()


def test_files_agree(tmp_path):
    x = images(4, 3, 8, 8)
    wrapped = calibrated(Cut(PARTS["uneven"][0]).eval(), x, rewrites=only(SPLIT))
    assert_files_agree(wrapped, x, folder=tmp_path)
    merged = calibrated(Cut(CUTS["steps"][0]).eval(), x, rewrites=only(MERGE))
    assert_files_agree(merged, x, folder=tmp_path)


def test_both_can_be_switched_off():
    wrapped = edgeq.PTCFxModule(Cut(PARTS["halves"][0]).eval(), rewrites={SPLIT: False})
    assert "split" not in kinds(wrapped)
    wrapped = edgeq.PTCFxModule(Cut(CUTS["after"][0]).eval(), rewrites={MERGE: False})
    assert kinds(wrapped).count("getitem") == 2
