"""Ranges of least squared error, against a search by brute force on the values themselves."""

import itertools

import pytest
import torch

from edgeq.arithmetic import Sign, fake_quantize
from edgeq.observers.search import SMALLEST_FRACTION
from edgeq.observers.squared_error import SquaredErrorObserver
from edgeq.qparams import qparams_of_range
from edgeq.spec import TensorSpec
from tests.observers.data import DISTRIBUTIONS, normal

SYMMETRIC = TensorSpec(symmetric=True)
FOUR_BITS = TensorSpec(bits=4, symmetric=True)
POWER = TensorSpec(symmetric=True, scale="power_of_two")
POWER_4 = TensorSpec(bits=4, symmetric=True, scale="power_of_two", power_of_two_rule="nearest")
WEIGHT_4 = TensorSpec(bits=4, symmetric=True, sign=Sign.SIGNED)
named = {"ids": ["symmetric", "4 bits", "power of two", "4 bits, power of two"]}


def error_of(spec, x, low, high, power=2):
    kept = fake_quantize(x, *qparams_of_range(spec, torch.as_tensor(low), torch.as_tensor(high)))
    return (kept.double() - x.double()).abs().pow(power).mean().item()


def least_error(spec, x, fractions, power=2):
    """The error of the best of all candidates; both ends move by themselves where the codes are affine."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    both = not spec.symmetric and low < 0 < high
    pairs = itertools.product(fractions, fractions) if both else zip(fractions, fractions, strict=True)
    return min(error_of(spec, x, low * a, high * b, power) for a, b in pairs)


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


@pytest.mark.parametrize("power", [1.0, 2.4, 4.0])
@pytest.mark.parametrize("spec", [SYMMETRIC, FOUR_BITS, POWER_4], ids=["symmetric", "4 bits", "4 bits, power of two"])
@pytest.mark.parametrize("name", ["normal", "after a relu", "heavy tails", "exponential", "with outliers"])
def test_another_power_of_the_error_is_within_a_few_per_cent_of_the_least(name, spec, power):
    x = DISTRIBUTIONS[name](8000)
    best = least_error(spec, x, FRACTIONS, power)
    assert error_of(spec, x, *found(spec, *x.split(1000), power=power), power) <= 1.08 * best


@pytest.mark.parametrize("power", [1.0, 2.4])
def test_a_weight_gets_the_very_least_error_of_another_power(power):
    x = DISTRIBUTIONS["heavy tails"](600)
    range_ = SquaredErrorObserver(WEIGHT_4, power=power).measure(x)
    assert error_of(WEIGHT_4, x, *range_, power) == pytest.approx(least_error(WEIGHT_4, x, FRACTIONS, power), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("normal", 0.3352),
        ("laplace", 0.6518),
    ],  # of uniform quantizers with 16 levels: J. Max, 1960, and Jayant and Noll
)
def test_the_step_of_4_bits_is_the_known_optimum(name, step):
    x = normal(200_000)
    if name == "laplace":
        x = DISTRIBUTIONS["exponential"](200_000) * normal(200_000, seed=5).sign()
    steps = [
        qparams_of_range(WEIGHT_4, *found(WEIGHT_4, *x.split(10_000), candidates=257, power=power)).scale.item()
        for power in (2.0, 2.4)
    ]
    assert steps[0] == pytest.approx(step, rel=0.03)
    assert steps[0] < steps[1] < 1.2 * steps[0]  # a greater power minds clipping more
