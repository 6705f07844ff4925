"""Batch norms that are called as functions learn, stay and are folded as the user's program means them to."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from edgeq.errors import TraceError
from edgeq.graph.prepare_parts import prepare_whole
from edgeq.modules.functional_norm import FrozenNorm, FunctionalNorm
from tests.graph.parity import assert_exact, calibrated, images, relative_error
from tests.scenarios.wired import folded, quantizers


class NormAct(nn.BatchNorm2d):
    """As timm writes it: counts by itself, and has its activation with it."""

    def forward(self, x):
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return F.relu(y)


class Own(nn.Module):
    """Statistics and parameters under names of the user's own."""

    def __init__(self, channels, learns=True, looks=False):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))
        self.register_buffer("mean", torch.randn(channels) * 0.2)
        self.register_buffer("var", torch.rand(channels) + 0.5)
        self.learns, self.looks = learns, looks

    def forward(self, x):
        if self.looks:
            assert len(x.shape) == 4
        is_training = self.training and self.learns
        return F.relu(F.batch_norm(x, self.mean, self.var, self.scale, self.shift, is_training, 0.3, 1e-3))


class AtRoot(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("mean", torch.randn(4) * 0.2)
        self.register_buffer("var", torch.rand(4) + 0.5)

    def forward(self, x):
        return F.batch_norm(self.conv(x), self.mean, self.var, training=self.training)


MODELS = {
    "a batch norm with its activation": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), NormAct(4)),
    "the user's own": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Own(4)),
    "never updated": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Own(4, learns=False)),
    "captured by example": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Own(4, looks=True)),
    "in the model itself": AtRoot,
}


def made(name):
    torch.manual_seed(0)
    return MODELS[name]()


@pytest.mark.parametrize("name", MODELS)
def test_training_is_that_of_the_float_model(name):
    own, twin = made(name).train(), made(name).train()
    before = {key: value.clone() for key, value in own.state_dict().items()}
    wrapped = edgeq.QATFxModule(own, total_epochs=1, num_observer_update_epochs=0, example_inputs=images()).train()
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())
    assert wrapped.module.state_dict().keys() >= before.keys()
    for step in range(2):
        for network in (wrapped, twin):
            network(images(4, 3, 6, 6, seed=step)).square().sum().backward()
    if name == "captured by example":  # where the rate is not seen
        state = own.state_dict()
        assert not torch.equal(state["1.mean"], before["1.mean"])
    for key, value in twin.state_dict().items():
        if name != "captured by example":
            torch.testing.assert_close(own.state_dict()[key], value)
        if name == "never updated" and key in ("1.mean", "1.var"):
            assert torch.equal(value, before[key])
    for one, other in zip(own.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
    frozen = wrapped.module.quantization.norms.children()
    assert {type(norm) for norm in frozen} == {FrozenNorm if name == "never updated" else FunctionalNorm}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_folded_into_the_layer_in_front_and_converts_exactly(name):
    model = made(name).eval()
    wrapped = calibrated(model, images(), example_inputs=images())
    layer = "conv" if name == "in the model itself" else "0"
    assert folded(wrapped) == {layer: "norm" if layer == "conv" else "norm, clip 0.."}
    assert len(quantizers(wrapped)) == 2
    assert relative_error(assert_exact(wrapped, images()), model(images())) < 0.02


@pytest.mark.parametrize("name", ["a batch norm with its activation", "in the model itself"])
def test_copies_pickles_and_other_types_keep_their_own_statistics(name):
    wrapped = edgeq.QATFxModule(made(name), total_epochs=2).train()
    wrapped(images())
    twin = copy.deepcopy(wrapped)
    for other in (twin, pickle.loads(pickle.dumps(wrapped)), copy.deepcopy(wrapped).double().float()):
        before = {key: value.clone() for key, value in wrapped.module.state_dict().items()}
        other(images(seed=3))
        assert all(torch.equal(value, before[key]) for key, value in wrapped.module.state_dict().items())
        moved = [key for key, value in other.module.state_dict().items() if not torch.equal(value, before[key])]
        assert any("mean" in key for key in moved)
        assert torch.equal(copy.deepcopy(other).eval()(images()), other.eval()(images()))
    wrapped.eval()
    wrapped.module.get_buffer("mean" if name == "in the model itself" else "1.running_mean").add_(1.0)
    assert not torch.equal(wrapped(images()), twin.eval()(images()))  # what is written is seen


def test_schedules_freeze_it_as_any_batch_norm():
    wrapped = edgeq.QATFxModule(made("the user's own"), total_epochs=4, num_batch_norm_update_epochs=1)
    mean = wrapped.module.get_buffer("1.mean")
    found = []
    for _ in range(3):
        wrapped.train()
        wrapped(images(seed=len(found)))
        found.append(mean.clone())
        wrapped.eval()
    assert torch.equal(found[1], found[2])
    wrapped.unfreeze()
    wrapped.train()
    wrapped(images(seed=9))
    assert not torch.equal(mean, found[2])


class Conditional(nn.Module):
    """Whose weight is computed: no batch norm that could be a module."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.gain, self.function = nn.Conv2d(3, 4, 1), nn.Linear(4, 4), function
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        return self.conv(self.function(self, self.conv(x)[:, :3])[:, :3])


def computed_weight(m, x):
    weight = m.gain(m.mean + 1)[:3]
    return F.batch_norm(x, m.mean[:3], m.var[:3], weight, None, m.training)


def of_each_item(m, x):
    return F.instance_norm(x, m.mean[:3], m.var[:3], use_input_stats=m.training)


@pytest.mark.parametrize("function", [computed_weight, of_each_item])
def test_what_cannot_follow_the_mode_is_refused_in_training_and_fine_in_calibration(function):
    model = Conditional(function)
    wrapped = calibrated(copy.deepcopy(model).eval(), images())
    assert relative_error(assert_exact(wrapped, images()), model.eval()(images())) < 0.05
    training = edgeq.QATFxModule(model, total_epochs=2)
    settings = training.module.parts["conv"].qconfig, training.module.backend, training.module.schedule, 0.0, None
    with pytest.raises(TraceError, match=r"is a call of functional.(batch|instance)_norm that uses the"):
        prepare_whole(model, *settings, is_qat=True)
    before = training.module.get_buffer("mean").clone()
    training.train()
    training(images())  # the norm is the Python that it is, around quantized parts
    assert not torch.equal(training.module.get_buffer("mean"), before)


def test_the_statistics_of_the_batch_that_are_always_used_are_no_running_ones():
    class Always(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return F.instance_norm(F.batch_norm(self.conv(x), None, None, training=True))

    model = Always().eval()
    wrapped = calibrated(model, images())
    assert len(wrapped.module.quantization.norms) == 0
    assert relative_error(assert_exact(wrapped, images()), model(images())) < 0.03
