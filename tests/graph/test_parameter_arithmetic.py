"""Weights and biases that the forward computes from parameters belong to quantized layers."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import edgeq
from tests.graph.parity import assert_exact, calibrated, images


class Joined(nn.Module):
    """A bias of three parts, of which one is a constant."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 12, bias=False)
        self.first, self.last = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        self.register_buffer("middle", torch.zeros(4), persistent=False)

    def forward(self, x):
        return functional.linear(x, self.linear.weight, torch.cat((self.first, self.middle, self.last)))


class Standardized(nn.Module):
    """A convolution with a weight of mean zero and variance one in each channel."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.gain = nn.Parameter(torch.ones(6, 1, 1, 1))

    def forward(self, x):
        weight = self.conv.weight
        mean, deviation = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return functional.conv2d(x, self.gain * (weight - mean) / deviation, self.conv.bias)


CASES = [(Joined, (16, 8)), (Standardized, (4, 3, 10, 10))]


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_the_layer_is_quantized_and_its_parameters_are_followed(build, shape):
    torch.manual_seed(0)
    model, x = build().eval(), images(*shape)
    wrapped = calibrated(model, x)
    assert len(wrapped.module.quantized_layers()) == 1
    (found,) = assert_exact(wrapped, x)
    assert (found - model(x)).norm() < 0.02 * model(x).norm()
    assert set(wrapped.module.state_dict()) >= set(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    halved = wrapped(x)
    assert (halved - model(x)).norm() < 0.05 * model(x).norm()


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_gradients_reach_what_it_is_computed_from(build, shape):
    torch.manual_seed(0)
    model, x = build(), images(*shape)
    training = edgeq.QATFxModule(model, total_epochs=2).train()
    training(x).square().mean().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (found[name] - parameter.grad).norm() < 0.05 * parameter.grad.norm(), name


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_copies_compute_from_their_own_parameters(build, shape, tmp_path):
    torch.manual_seed(0)
    model, x = build().eval(), images(*shape)
    wrapped = calibrated(model, x, bias_calibration_factor=0)
    expected = wrapped(x)
    twin = copy.deepcopy(wrapped)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(x), expected)
    assert wrapped.export(x, tmp_path / "zero.onnx").passed
    assert twin.export(x, tmp_path / "computed.onnx").passed


def test_a_computed_bias_is_not_moved_by_calibration():
    torch.manual_seed(0)
    model, x = Joined().eval(), images(64, 8)
    (layer,) = calibrated(model, x, bias_calibration_factor=1).module.quantized_layers()
    assert layer.deployed_bias is None
    assert not layer.bias_shift.any()


def test_a_weight_that_depends_on_the_input_stays_float():
    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x) + functional.linear(x, self.linear.weight * x.mean())

    wrapped = calibrated(Dynamic().eval(), images(16, 8))
    assert len(wrapped.module.quantized_layers()) == 1
    assert "its weight is computed, not stored" in wrapped.explain()


def test_a_computed_parameter_pickles():
    model = calibrated(Importable().eval(), images(16, 8))
    expected = model(images(16, 8))
    assert torch.equal(pickle.loads(pickle.dumps(model))(images(16, 8)), expected)


class Importable(Joined):
    pass
