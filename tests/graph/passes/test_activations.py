"""Activations that are replaced on request, and by how much that changes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from tests.graph.parity import assert_exact, calibrated, images
from tests.graph.passes.networks import assert_files_agree, changes, kinds, only

RELU, SWISH, SIGMOID = "hard_activation_to_relu", "silu_to_hardswish", "sigmoid_to_hardsigmoid"


class Active(nn.Module):
    """Convolution, activation, convolution."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.function = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), function
        if isinstance(function, nn.Module):
            self.function = function

    def forward(self, x):
        return self.second(self.function(self.first(x)))


CASES = [
    (RELU, nn.ReLU6(inplace=True), torch.relu),
    (RELU, F.relu6, torch.relu),
    (RELU, nn.Hardtanh(0.0, 2.0), torch.relu),
    (RELU, lambda y: F.hardtanh(y, 0.0, 1.0), torch.relu),
    (RELU, lambda y: y.clamp(0, 4), torch.relu),
    (RELU, lambda y: torch.clamp(y, min=0.0, max=0.5), torch.relu),
    (SWISH, nn.SiLU(), F.hardswish),
    (SWISH, F.silu, F.hardswish),
    (SIGMOID, nn.Sigmoid(), F.hardsigmoid),
    (SIGMOID, torch.sigmoid, F.hardsigmoid),
    (SIGMOID, lambda y: y.sigmoid(), F.hardsigmoid),
]


@pytest.mark.parametrize(("name", "function", "other"), CASES)
def test_the_network_becomes_the_one_with_the_other_activation(name, function, other):
    wrapped = edgeq.PTCFxModule(Active(function).eval(), rewrites=only(name), example_inputs=images())
    with torch.no_grad():
        expected, before = Active(other).eval()(images()), Active(function).eval()(images())
        assert torch.allclose(wrapped.module.run_float(images()), expected, rtol=1e-5, atol=1e-5)
    (change,) = wrapped.module.changes.each
    x = 4 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    assert change.difference == pytest.approx(float((function(x.clone()) - other(x)).abs().max()), rel=1e-5)
    assert not change.keeps
    assert wrapped.module.changes.difference == pytest.approx(float((expected - before).abs().max()), rel=1e-3)
    assert f"difference up to {change.difference:.3g} on normal data" in wrapped.explain()
    wrapped.train()
    wrapped(images())
    assert_exact(wrapped.eval(), images())


def test_the_greatest_differences_are_those_of_the_functions():
    assert changes(Active(nn.SiLU()).eval(), SWISH)[0].difference == pytest.approx(0.142, abs=0.002)
    assert changes(Active(nn.Sigmoid()).eval(), SIGMOID)[0].difference == pytest.approx(0.0692, abs=0.0005)
    assert changes(Active(nn.ReLU6()).eval(), RELU)[0].difference == pytest.approx(9.0, abs=4)


@pytest.mark.parametrize(("name", "function"), [
    (RELU, nn.ReLU()),
    (RELU, nn.Hardtanh(-1.0, 1.0)),
    (RELU, lambda y: y.clamp(min=0)),
    (RELU, lambda y: y.clamp(max=6)),
    (SWISH, nn.GELU()),
    (SIGMOID, nn.Tanh()),
])  # fmt: skip
def test_other_activations_stay(name, function):
    assert changes(Active(function).eval(), name) == ()


@pytest.mark.parametrize(("name", "function"), [(RELU, nn.ReLU6()), (SWISH, nn.SiLU()), (SIGMOID, nn.Sigmoid())])
def test_none_of_them_runs_unless_it_is_asked_for(name, function):
    wrapped = edgeq.PTCFxModule(Active(function).eval())
    assert name not in {change.rewrite for change in wrapped.module.changes.each}
    assert name in {change.rewrite for change in changes(Active(function).eval(), name)}


@pytest.mark.parametrize(("name", "function"), [(RELU, nn.ReLU6()), (SWISH, nn.SiLU()), (SIGMOID, nn.Sigmoid())])
def test_files_agree(name, function, tmp_path):
    wrapped = calibrated(Active(function).eval(), images(), rewrites=only(name))
    assert_files_agree(wrapped, images(), folder=tmp_path)


def test_the_activation_is_still_absorbed_by_the_layer_in_front():
    wrapped = calibrated(Active(nn.ReLU6()).eval(), images(), rewrites=only(RELU))
    assert kinds(wrapped) == ["QuantizedConv2d", "QuantizedConv2d"]
    assert (wrapped.module.quantized_layers()[0].site.floor, wrapped.module.quantized_layers()[0].site.ceiling) == (
        0,
        None,
    )
