"""The formulas of AdaRound against their closed forms."""

import itertools

import pytest
import torch
from torch import nn

import edgeq
from edgeq.recovery.soft_rounding import (
    SoftRounding,
    beta_at,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
)


def test_the_rectified_sigmoid_is_the_papers():
    alpha = torch.tensor([0.0, 1.0, -1.0, 3.0, -3.0])
    sigmoid = 1 / (1 + (-alpha).exp())
    assert torch.allclose(rectified_sigmoid(alpha), (1.2 * sigmoid - 0.1).clamp(0, 1), atol=1e-7)
    assert rectified_sigmoid(torch.tensor([2.3980])).item() == pytest.approx(1.0, abs=1e-5)  # ln 11: it is reached
    assert rectified_sigmoid(torch.tensor([9.0, -9.0])).tolist() == [1.0, 0.0]


def test_the_inverse_gives_back_what_was_put_in():
    h = torch.linspace(0, 1, 101)
    assert torch.allclose(rectified_sigmoid(inverse_rectified_sigmoid(h)), h, atol=1e-6)


def test_its_gradient_is_that_of_a_sigmoid_inside_and_zero_outside():
    alpha = torch.tensor([0.0, 1.5, -2.0, 5.0, -5.0], requires_grad=True)
    rectified_sigmoid(alpha).sum().backward()
    sigmoid = torch.sigmoid(alpha.detach())
    expected = 1.2 * sigmoid * (1 - sigmoid) * torch.tensor([1, 1, 1, 0, 0])
    assert torch.allclose(alpha.grad, expected, atol=1e-6)


@pytest.mark.parametrize(("progress", "beta"), [(0.0, None), (0.19, None), (0.2, 20.0), (0.6, 11.0), (1.0, 2.0)])
def test_beta_falls_from_20_to_2_after_a_warm_up(progress, beta):
    assert beta_at(progress) == (beta if beta is None else pytest.approx(beta))


def test_the_penalty_is_one_in_the_middle_and_nothing_at_the_ends():
    rounding = SoftRounding(torch.tensor([0.5, 1.25, 2.0]), torch.tensor(1.0), -8, 7)
    assert rounding.penalty(0.1) is None
    h = torch.tensor([0.5, 0.25, 0.0])
    for progress in (0.2, 0.6, 1.0):
        expected = (1 - (2 * h - 1).abs() ** beta_at(progress)).mean()
        assert rounding.penalty(progress).item() == pytest.approx(expected.item(), abs=1e-5)


def test_its_gradient_pushes_to_the_nearer_end():
    rounding = SoftRounding(torch.tensor([0.3, 0.7]), torch.tensor(1.0), -8, 7)
    rounding.penalty(1.0).backward()
    h, slope = torch.tensor([0.3, 0.7]), torch.tensor([(0.4 / 1.2) * (0.8 / 1.2) * 1.2] * 2)
    expected = -2 * 2 * (2 * h - 1) * slope / 2  # beta is 2: d(1 - (2h - 1)^2) = -4 (2h - 1) dh, and a mean of two
    assert torch.allclose(rounding.alpha.grad, expected, atol=1e-5)
    assert rounding.alpha.grad[0] > 0 > rounding.alpha.grad[1]


@pytest.mark.parametrize(("low", "high"), [(-2, 1), (-8, 7), (-128, 127)])
def test_it_begins_as_the_weight_itself_within_the_codes_and_hardens_to_the_nearest(low, high):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 50, generator=generator)
    step = weight.abs().amax(1, keepdim=True) / high * 0.4  # some of it lies outside
    rounding = SoftRounding(weight, step, low, high)
    assert torch.allclose(rounding.weight(), torch.clamp(weight, low * step, high * step), atol=1e-5)
    codes = rounding.codes()
    assert codes.min() == low
    assert codes.max() == high
    assert torch.equal(codes, (weight / step).round().clamp(low, high))
    with torch.no_grad():
        rounding.alpha.fill_(10.0)
    assert torch.equal(rounding.codes(), ((weight / step).floor() + 1).clamp(low, high))


def searched(weight, scale, moments, codes):
    """The errors of all ways to round a row of weights to its neighbours, sorted, and that of `codes`."""

    def error(row):
        difference = row * scale - weight
        return float(difference @ moments @ difference.T)

    floor = (weight / scale).floor()
    choices = itertools.product((0.0, 1.0), repeat=weight.numel())
    return sorted(error((floor + torch.tensor(bits)).clamp(-4, 3)) for bits in choices), error(codes)


def test_codes_of_a_small_layer_are_nearly_the_best_of_all():
    """Eight weights, of inputs that go together, against a search of all 2**8 ways to round them."""
    found, nearest, best = [], [], []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x = [torch.randn(32, 8, generator=generator) + 3 * torch.randn(32, 1, generator=generator) for _ in range(9)]
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 1, bias=False))
        preset = {"inherits": "WC4_AT8", "recovery": [], "weight": {"bits": 3}}
        wrapped = edgeq.PTCFxModule(model, preset, bias_calibration_factor=0.0).calibrate(x)
        weight, quantizer = model[0].weight.detach(), wrapped.module.quantized_layers()[0].weight_quantizer
        given = weight, quantizer.scale, torch.cat(x).T @ torch.cat(x)
        nearest.append(searched(*given, quantizer.codes(weight))[1])
        wrapped.recover(x, [("adaround", {"steps": 200, "rate": 0.2})])
        errors, error = searched(*given, quantizer.codes(weight))
        found.append(error)
        best.append(errors[0])
        assert error <= errors[4]
    assert sum(found) < 1.1 * sum(best)
    assert sum(nearest) > 2 * sum(best)
