"""Hooks on modules of a float network: which forms of it run them, and what is said of the others."""

import logging

import pytest
import torch
from torch import nn

import edgeq
from tests.graph.parity import assert_exact, images


def twice(module, args, output):
    return output * 2


def model():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    attention = nn.MultiheadAttention(6, 2, batch_first=True)
    return Looking(nn.Sequential(block, nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.Softplus()), attention).eval()


class Looking(nn.Module):
    def __init__(self, body, attention):
        super().__init__()
        self.body, self.attention = body, attention

    def forward(self, x):
        y = self.body(x).flatten(2)[..., :6]
        return self.attention(y, y, y)[0]


def wrapped_with(path, caplog):
    """What the model with a hook on a module gives; it calibrated, an input, and the warnings, of a conversion too."""
    network = model()
    network.get_submodule(path).register_forward_hook(twice)
    x = images()
    with torch.no_grad():
        expected = network(x)
    with caplog.at_level(logging.WARNING, "edgeq.graph.hooks"):
        wrapped = edgeq.PTCFxModule(network).calibrate([x])
        wrapped.convert()
    said = [record.message.partition(". What")[0] for record in caplog.records]
    return expected, wrapped, x, said


@pytest.mark.parametrize("path", ["body", "body.0"])
def test_those_of_a_block_are_a_part_of_the_graph(path, caplog):
    expected, wrapped, x, said = wrapped_with(path, caplog)
    torch.testing.assert_close(wrapped.module.run_float(x), expected, rtol=1e-4, atol=1e-5)
    assert_exact(wrapped, x)
    assert said == []


def test_those_of_a_module_that_computes_in_float_are_run_by_every_form(caplog):
    expected, wrapped, x, said = wrapped_with("body.3", caplog)
    torch.testing.assert_close(wrapped.module.run_float(x), expected, rtol=1e-4, atol=1e-5)
    assert_exact(wrapped, x)
    assert said == []


@pytest.mark.parametrize("path", ["body.2", "body.1"])
def test_those_of_a_layer_or_of_what_moves_values_are_run_until_the_conversion(path, caplog):
    expected, wrapped, x, said = wrapped_with(path, caplog)
    torch.testing.assert_close(wrapped.module.run_float(x), expected, rtol=1e-4, atol=1e-5)
    assert said == [f"The network of integers does not run the hooks on: {path}"]


@pytest.mark.parametrize("path", ["body.0.1", "body.0.2", "attention"])
def test_those_of_what_became_a_part_of_others_are_told_when_it_does(path, caplog):
    _, wrapped, x, said = wrapped_with(path, caplog)
    assert said == [f"The quantized Looking does not run the hooks on: {path}"]
    assert_exact(wrapped, x)


def test_those_of_the_model_itself_are_told(caplog):
    _, wrapped, x, said = wrapped_with("", caplog)
    assert said == ["The quantized Looking does not run the hooks on: the model itself"]
    assert_exact(wrapped, x)


def test_those_that_compute_a_weight_are_no_matter(caplog):
    with caplog.at_level(logging.WARNING, "edgeq.graph.hooks"):
        network = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 4)), nn.ReLU())
        edgeq.PTCFxModule(network).calibrate([images(8, 3)]).convert()
    assert caplog.records == []
