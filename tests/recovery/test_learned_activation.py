"""The quantizer of an activation while a unit learns, against the one that it stands for and against LSQ's formulas."""

import pytest
import torch

from edgeq.phase import Phase
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.recovery.learned_activation import LearnedActivation
from edgeq.spec import Method, TensorSpec

X = torch.linspace(-3, 5, 801) + 0.0037  # no ties


def quantizer(symmetric=False, bits=4, ends=(-1.0, 2.0)):
    """One that quantizes, with the range -1..2."""
    made = TensorQuantizer("x", TensorSpec(bits=bits, symmetric=symmetric), Method("minmax"))
    made.phase = Phase.OBSERVE
    made(torch.tensor(ends))
    made.finish()
    made.phase = Phase.QUANTIZE
    return made


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bounds", [(None, None), (0.0, None), (0.0, 1.5), (-1.0, 1.0)])
@pytest.mark.parametrize("learns", [False, True])
def test_it_gives_what_the_quantizer_gives(symmetric, bounds, learns):
    made = quantizer(symmetric)
    form = LearnedActivation(made)
    if learns:
        form.learn()
    assert torch.equal(form(X, *bounds), made(X, *bounds))


def test_without_quantization_the_activation_function_is_left():
    form = LearnedActivation(quantizer())
    assert torch.equal(form(X, 0.0, 1.5, quantizes=False), X.clamp(0.0, 1.5))
    assert torch.equal(form(X, quantizes=False), X)


def test_what_is_no_floating_tensor_passes():
    form = LearnedActivation(quantizer())
    codes = torch.arange(3)
    assert form(codes) is codes
    assert form(7) == 7


def test_the_derivative_by_theta_is_that_of_lsq_times_the_scale():
    made = quantizer()
    form = LearnedActivation(made)
    theta = form.learn()
    step, zero = made.scale.double(), int(made.zero_point)
    ratio = X.double() / step
    inside = (ratio > -zero - 0.5) & (ratio < 15 - zero + 0.5)
    expected = torch.where(inside, ratio.round() - ratio, ratio.round().clamp(-zero, 15 - zero)) * step
    for index in range(0, len(X), 50):
        (slope,) = torch.autograd.grad(form(X)[index], theta)
        assert float(slope) == pytest.approx(float(expected[index]), abs=1e-5)


def test_the_derivative_by_the_value_is_straight_through():
    for learns in (False, True):
        form = LearnedActivation(quantizer())
        if learns:
            form.learn()
        x = X.clone().requires_grad_()
        (slope,) = torch.autograd.grad(form(x).sum(), x)
        assert torch.equal(slope, ((X > -1.1) & (X < 2.1)).float())


def test_elements_stay_real_where_they_are_told_to():
    made = quantizer()
    form = LearnedActivation(made)
    mask = (torch.arange(len(X)) % 3 == 0).float()
    form.stays_real = lambda x: mask
    found = form(X, 0.0, None)
    assert torch.equal(found, torch.where(mask == 1, X.relu(), made(X, 0.0, None)))
    assert not torch.equal(found, made(X, 0.0, None))


def test_a_value_that_is_quantized_is_not_written_into():
    x = X.clone()
    LearnedActivation(quantizer())(x, 0.0, None, fresh=True)
    assert torch.equal(x, X)
