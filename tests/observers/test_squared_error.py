"""Ranges of least squared error, against a search by brute force on the values themselves."""

import itertools

import numpy as np
import pytest
import torch

from edgeq.arithmetic import Sign, fake_quantize
from edgeq.observers.squared_error import SMALLEST_FRACTION, Moments, SquaredErrorObserver
from edgeq.qparams import qparams_of_range
from edgeq.spec import TensorSpec
from tests.observers.data import DISTRIBUTIONS, normal

SYMMETRIC = TensorSpec(symmetric=True)
FOUR_BITS = TensorSpec(bits=4, symmetric=True)
POWER = TensorSpec(symmetric=True, scale="power_of_two")
POWER_4 = TensorSpec(bits=4, symmetric=True, scale="power_of_two", power_of_two_rule="nearest")
WEIGHT_4 = TensorSpec(bits=4, symmetric=True, sign=Sign.SIGNED)
named = {"ids": ["symmetric", "4 bits", "power of two", "4 bits, power of two"]}


def error_of(spec, x, low, high):
    kept = fake_quantize(x, *qparams_of_range(spec, torch.as_tensor(low), torch.as_tensor(high)))
    return (kept.double() - x.double()).square().mean().item()


def least_error(spec, x, fractions):
    """The error of the best of all candidates; both ends move by themselves where the codes are affine."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    both = not spec.symmetric and low < 0 < high
    pairs = itertools.product(fractions, fractions) if both else zip(fractions, fractions, strict=True)
    return min(error_of(spec, x, low * a, high * b) for a, b in pairs)


def found(spec, *batches, **options):
    observer = SquaredErrorObserver(spec, **options)
    for x in batches:
        observer.observe(x)
    return observer.range()


FRACTIONS = torch.linspace(SMALLEST_FRACTION, 1, 65)


@pytest.mark.parametrize("spec", [SYMMETRIC, FOUR_BITS, POWER, POWER_4], **named)
@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS.keys() - {"few values"}))  # whose errors of rounding are not even
def test_the_error_is_within_a_few_per_cent_of_the_least(name, spec):
    x = DISTRIBUTIONS[name](8000)
    best = least_error(spec, x, FRACTIONS)
    assert error_of(spec, x, *found(spec, *x.split(1000))) <= 1.05 * best + 1e-12
    assert best < error_of(spec, x, x.min(), x.max()) * 1.0001


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["normal", "heavy tails", "with outliers", "shifted"])
def test_affine_ends_are_searched_each_by_itself(name, bits):
    spec = TensorSpec(bits=bits)
    x = DISTRIBUTIONS[name](3000)
    coarse = least_error(spec, x, FRACTIONS[::4])
    assert error_of(spec, x, *found(spec, x)) <= 1.03 * coarse


def test_an_outlier_is_cut_off_where_it_costs_less_than_a_coarser_step():
    x = torch.cat([normal(16_000), torch.tensor([40.0])])
    assert found(WEIGHT_4, x)[1] < 10
    assert found(TensorSpec(bits=16, symmetric=True), x)[1] == 40


def test_of_two_powers_of_two_the_better_one_is_chosen():
    """A range just above 2 doubles the step, which a few values are not worth."""
    few = torch.cat([2 * torch.linspace(-1, 1, 16_000), torch.tensor([2.1, -2.1])])
    many = 3.5 * torch.linspace(-1, 1, 16_000)
    spec = TensorSpec(bits=4, symmetric=True, scale="power_of_two")
    assert qparams_of_range(spec, few.min(), few.max()).scale == 0.5
    assert [qparams_of_range(spec, *found(spec, x)).scale.item() for x in (few, many)] == [0.25, 0.5]


@pytest.mark.parametrize("spec", [WEIGHT_4, TensorSpec(sign=Sign.SIGNED, symmetric=True), POWER_4], ids=str)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_weight_gets_the_very_least_error(name, spec):
    x = DISTRIBUTIONS[name](600)
    range_ = SquaredErrorObserver(spec).measure(x)
    assert error_of(spec, x, *range_) == pytest.approx(least_error(spec, x, FRACTIONS), rel=1e-4)


def test_a_half_precision_weight_is_searched_in_float32():
    x = normal(4000).to(torch.bfloat16)
    spec = WEIGHT_4
    assert torch.equal(
        torch.stack(SquaredErrorObserver(spec).measure(x)), torch.stack(SquaredErrorObserver(spec).measure(x.float()))
    )


def test_more_candidates_are_never_worse_for_a_weight():
    x = normal(500) ** 3
    errors = [
        error_of(WEIGHT_4, x, *SquaredErrorObserver(WEIGHT_4, candidates=n).measure(x)) for n in (2, 3, 5, 9, 17, 33)
    ]
    assert errors == sorted(errors, reverse=True)  # each grid holds the one before
    assert errors[-1] < errors[0]


def test_degenerate_weights_keep_their_extremes():
    weight = torch.tensor([[0.0, 0.0], [3e38, -3e38], [1e-40, 0.0]])
    observer = SquaredErrorObserver(WEIGHT_4, 3, 0)
    low, high = observer.measure(weight)
    assert bool(torch.isfinite(torch.stack([low, high])).all())
    assert (low[0], high[0]) == (0.0, 0.0)
    assert high[1] == weight[1, 0]  # its squares overflow, so there is nothing to compare


def test_moments_are_those_of_the_histogram():
    edges = torch.arange(-4.0, 5.0, dtype=torch.float64)
    counts = torch.tensor([1.0, 0, 2, 3, 4, 0, 5, 1], dtype=torch.float64)
    centres = np.arange(-3.5, 4.0)
    below = Moments(edges, counts).below(torch.tensor([-4.0, 0.0, 4.0, 9.0], dtype=torch.float64))
    for column, end in enumerate([0, 4, 8, 8]):
        n, c = counts.numpy()[:end], centres[:end]
        assert below[:, column].tolist() == [n.sum(), (n * c).sum(), (n * c * c).sum()]


def test_the_error_of_a_candidate_adds_rounding_clipping_and_what_becomes_zero():
    edges = torch.arange(-64.0, 65.0, dtype=torch.float64) / 8
    counts = torch.zeros(128, dtype=torch.float64)
    counts[64], counts[100], counts[127], counts[0] = 7, 5, 2, 3  # at 1/16, 4 + 9/16, 8 - 1/16, -8 + 1/16
    low, high, step = (torch.tensor([value], dtype=torch.float64) for value in (-6.0, 6.0, 1.0))
    expected = 7 / 16**2 + 5 / 12 + 2 * (8 - 1 / 16 - 6) ** 2 + 3 * (8 - 1 / 16 - 6) ** 2
    assert Moments(edges, counts).error(low, high, step).item() == pytest.approx(expected)
