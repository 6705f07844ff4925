"""Regions of a forward without gradients: the parameters inside stay as they are in training too."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import edgeq
from tests.graph.parity import assert_exact


class Probe(nn.Module):
    """A backbone, and a head that is trained on what `region` makes of it."""

    def __init__(self, region):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.head, self.region = nn.Linear(4, 2), region

    def forward(self, x):
        return self.head(self.region(self, x))


def under_no_grad(model, x):
    with torch.no_grad():
        return model.backbone(x).mean((2, 3))


@torch.no_grad()
def decorated(model, x):
    return model.backbone(x).mean((2, 3))


@torch.inference_mode()
def inferred(model, x):
    return model.backbone(x).mean((2, 3))


def parts_of_it(model, x):
    with torch.no_grad():
        first, second = model.backbone(x).split(2, 1)[:2]
    return torch.cat([first, second], 1).mean((2, 3))


def a_parameter(model, x):
    with torch.no_grad():
        weight = model.backbone[0].weight / model.backbone[0].weight.norm()
    return functional.conv2d(x, weight).mean((2, 3))


def sizes(model, x):
    y = model.backbone(x)
    with torch.no_grad():
        count = y.shape[2] * y.shape[3]
    return y.sum((2, 3)) / count


def when_training(model, x):
    with torch.set_grad_enabled(model.training):
        return model.backbone(x).mean((2, 3))


def images(seed=0):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def trained(model, network):
    """The names of the parameters of `model` that get a gradient other than zero when `network` is trained."""
    network.train()
    network(images()).square().sum().backward()
    found = {name for name, each in model.named_parameters() if each.grad is not None and bool(each.grad.any())}
    model.zero_grad()
    return found


REGIONS = [under_no_grad, decorated, parts_of_it, a_parameter, sizes, when_training]


@pytest.mark.parametrize("region", REGIONS)
def test_those_parameters_are_trained_that_the_float_network_trains(region):
    float_model, model = Probe(region), Probe(region)
    expected = trained(float_model, float_model)
    network = edgeq.QATFxModule(model, total_epochs=2)
    assert trained(model, network) == expected
    assert {"head.weight", "head.bias"} <= expected
    assert ("backbone.0.weight" in expected) == (region in (sizes, when_training))


def test_a_region_of_inference_is_one_without_gradients():
    model = Probe(inferred)
    assert trained(model, edgeq.QATFxModule(model, total_epochs=2)) == {"head.weight", "head.bias"}


def test_a_network_under_no_grad_may_be_wrapped_with_gradients_in_it():
    model = Probe(sizes)
    with torch.no_grad():
        network = edgeq.QATFxModule(model, total_epochs=2)
    assert "backbone.0.weight" in trained(model, network)


@pytest.mark.parametrize("region", REGIONS)
def test_a_region_changes_no_number(region):
    plain = edgeq.QATFxModule(Probe(region).eval(), total_epochs=2)
    plain.train()
    plain(images())
    assert_exact(plain.eval(), images(1))


def test_calibration_has_no_gradients_to_stop():
    graph = edgeq.PTCFxModule(Probe(under_no_grad).eval()).module.fx_graph
    assert [node for node in graph.nodes if node.target == "detach"] == []
