"""A global average pool of many positions becomes two, on request."""

import logging

import pytest
import torch
from torch import nn

import edgeq
from tests.graph.parity import calibrated, images
from tests.graph.passes.networks import AS_WRITTEN, assert_files_agree, assert_same_function, changes, kinds, only

NAME = "large_pool_split"


def network(pool=None, conv=nn.Conv2d):
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 6, 1), pool or nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


@pytest.mark.parametrize(("size", "positions"), [((16, 24), 128), ((16, 24), 24), ((13, 24), 64), ((30, 30), 512)])
def test_the_first_pool_takes_blocks_that_divide_the_map(size, positions):
    x = images(2, 3, *size)
    wrapped = edgeq.PTCFxModule(network(), rewrites=only(NAME, {"positions": positions}), example_inputs=x)
    (node,) = (node for node in wrapped.module.fx_graph.nodes if getattr(node.target, "__name__", "") == "avg_pool2d")
    height, width = node.args[1]
    assert (size[0] % height, size[1] % width) == (0, 0)
    assert height * width <= positions
    assert size[0] * size[1] // (height * width) <= positions
    assert wrapped.module.changes.each[0].difference < 1e-5


@pytest.mark.parametrize(("conv", "pool", "shape"), [
    (nn.Conv1d, nn.AdaptiveAvgPool1d(1), (2, 3, 600)),
    (nn.Conv2d, nn.AdaptiveAvgPool2d((1, 1)), (2, 3, 24, 32)),
    (nn.Conv3d, nn.AdaptiveAvgPool3d(1), (2, 3, 8, 9, 10)),
])  # fmt: skip
def test_pools_of_every_dimension_are_split(conv, pool, shape):
    wrapped = assert_same_function(lambda: network(pool, conv), NAME, images(*shape))
    assert kinds(wrapped)[1:3] == [f"avg_pool{len(shape) - 2}d", type(pool).__name__]
    assert len(wrapped.module.quantizers()) == 5  # one more


def test_a_mean_that_became_a_pool_is_split_too():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 6, 1), nn.Linear(6, 4)

        def forward(self, x):
            return self.linear(self.conv(x).mean((2, 3)))

    wanted = {**AS_WRITTEN, NAME: True, "mean_to_pool": True}
    wrapped = edgeq.PTCFxModule(Mean().eval(), rewrites=wanted, example_inputs=images(2, 3, 32, 32))
    assert kinds(wrapped)[1:4] == ["avg_pool2d", "adaptive_avg_pool2d", "flatten"]


def test_small_pools_and_such_to_several_positions_stay():
    assert changes(network(), NAME, images(2, 3, 16, 32)) == ()
    wide = nn.Sequential(nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(2), nn.Conv2d(6, 4, 1)).eval()
    assert changes(wide, NAME, images(2, 3, 32, 32)) == ()


def test_a_map_that_no_block_divides_is_told(caplog):
    with caplog.at_level(logging.WARNING, "edgeq.graph.passes.large_pool_split"):
        assert changes(network(), NAME, images(2, 3, 23, 29), options={"positions": 20}) == ()
    assert "no block of at most 20 positions divides (23, 29)" in caplog.text


def test_it_runs_only_on_request_and_needs_example_inputs():
    assert not edgeq.PTCFxModule(network(), example_inputs=images(2, 3, 32, 32)).module.changes.each
    with pytest.raises(edgeq.SpecError, match=r"large_pool_split needs example_inputs"):
        edgeq.PTCFxModule(network(), rewrites={NAME: True})
    with pytest.raises(edgeq.SpecError, match=r"positions .* integer of at least 2, got 1"):
        edgeq.PTCFxModule(network(), rewrites={NAME: {"positions": 1}}, example_inputs=images())


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
def test_files_agree(preset, tmp_path):
    x = images(2, 3, 24, 32)
    wrapped = calibrated(network(), x, preset=preset, rewrites={NAME: True}, example_inputs=x)
    assert_files_agree(wrapped, x, folder=tmp_path)
