"""Capturing a model leaves no trace on it: not in buffers, attributes or modes, whatever its forward does."""

import logging

import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import TraceError
from edgeq.graph.trace import trace
from edgeq.graph.undisturbed import undisturbed
from tests.graph.parity import calibrated, images, relative_error


class Writing(nn.Module):
    """Counts in place and anew, keeps what it has seen, and drops in training."""

    def __init__(self, fails=False):
        super().__init__()
        self.conv, self.norm, self.fails = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), fails
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("total", torch.zeros(1))
        self.seen = None

    def forward(self, x):
        self.count += 1
        self.total = self.total + 1
        self.seen = x
        self.conv.seen = x
        y = torch.nn.functional.dropout(self.norm(self.conv(x)), 0.5, self.training)
        if self.fails and y.sum() > 0:
            return y
        return y + 1


def state_of(model):
    buffers = {name: (value, value.clone()) for name, value in model.named_buffers()}
    return buffers, [dict(vars(module)) for module in model.modules()]


def assert_undisturbed(model, before):
    buffers, attributes = before
    for name, value in model.named_buffers():
        assert value is buffers[name][0]
        assert torch.equal(value, buffers[name][1])
    assert [dict(vars(module)) for module in model.modules()] == attributes


@pytest.mark.parametrize("example_inputs", [None, images()], ids=["by tracing", "by example"])
def test_a_forward_that_writes_leaves_the_model_as_it_was(example_inputs, caplog):
    model = Writing().train()
    model.norm.eval()
    before = state_of(model)
    with caplog.at_level(logging.WARNING, "edgeq"):
        wrapped = edgeq.QATFxModule(model, total_epochs=2, example_inputs=example_inputs)
    assert_undisturbed(model, before)
    assert "The forward of Writing writes into buffers: count, total. Its graph does not" in caplog.text
    wrapped.train()
    wrapped(images())
    assert float(model.count) == 0.0
    assert int(model.norm.num_batches_tracked) == 1


def test_a_capture_that_fails_leaves_the_model_as_it_was():
    model = Writing(fails=True).train()
    before = state_of(model)
    with pytest.raises(TraceError, match="symbolically traced variables"):
        trace(model)
    assert_undisturbed(model, before)


def test_constants_that_tracing_makes_stay_only_until_they_are_taken_over():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.inner(x) * torch.tensor([2.0, 3.0, 4.0, 5.0])[:, None, None]

    model = Constant().eval()
    with undisturbed(model, training=False):
        model.kept, model.text = torch.ones(1), "gone"
        model.inner.other = torch.ones(1)
    assert "kept" in vars(model)
    assert "text" not in vars(model)
    assert "other" not in vars(model.inner)
    del model.kept
    attributes = set(vars(model))
    wrapped = calibrated(model, images())
    assert set(vars(model)) == attributes
    with torch.no_grad():
        assert relative_error(wrapped(images()), model(images())) < 0.02


def test_modes_are_those_of_the_capture_within():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout()).train()
    model[1].eval()
    for training in (False, True):
        with undisturbed(model, training):
            assert [module.training for module in model.modules()] == [training] * 3
        assert [module.training for module in model.modules()] == [True, True, False]
