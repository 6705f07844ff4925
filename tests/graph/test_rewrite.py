"""Rewrites of a traced graph that change nothing of what is computed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from tests.graph.parity import images


class Behind(nn.Module):
    """A function of the output of a convolution."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.drop = nn.Conv2d(3, 8, 1), nn.Dropout(0.5, inplace=True)
        self.function = function

    def forward(self, x):
        return self.function(self, self.conv(x))


def test_a_view_becomes_a_reshape_for_memory_may_lie_in_another_order():
    model = Behind(lambda m, y: y.view(y.size(0), -1))
    targets = [node.target for node in edgeq.PTCFxModule(model).module.fx_graph.nodes]
    assert "reshape" in targets
    assert "view" not in targets
    cast = Behind(lambda m, y: y.view(torch.int32))  # not the same thing
    assert "view" in [node.target for node in edgeq.PTCFxModule(cast).module.fx_graph.nodes]


@pytest.mark.parametrize("name", ["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"])
def test_functional_dropout_follows_the_mode(name):
    model = Behind(lambda m, y: getattr(F, name)(y[0], 0.5, m.training)).train()
    wrapped, x = edgeq.QATFxModule(model, num_observer_update_epochs=0, total_epochs=1).train(), images()
    for _ in range(2):
        torch.manual_seed(5)
        expected = model(x)
        torch.manual_seed(5)
        assert torch.equal(wrapped(x), expected)
    assert not torch.equal(expected, model.eval()(x))
    assert torch.equal(wrapped.eval()(x), model(x))


def test_dropout_drops_nothing_while_calibrating():
    model, x = Behind(lambda m, y: m.drop(y)).train(), images()
    wrapped = edgeq.PTCFxModule(model).train()
    assert torch.equal(wrapped(x), model.eval()(x))
