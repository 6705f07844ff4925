"""Powers of two: what a batch votes for, and what comes of the votes."""

import pytest
import torch

from edgeq.errors import SpecError
from edgeq.observers.power_of_two_search import LEAST, PowerOfTwoSearchObserver
from edgeq.qparams import qparams_of_range
from edgeq.spec import Method, TensorSpec
from tests.observers.data import DISTRIBUTIONS, normal
from tests.observers.test_squared_error import error_of

OVER = ["mode", "mean", "median", "maximum"]


def spec_of(bits=4, rule="ceil", **options):
    return TensorSpec(bits=bits, scale="power_of_two", power_of_two_rule=rule, **options)


def scale_of(observer):
    return qparams_of_range(observer.spec, *observer.range()).scale.item()


def shown(spec, *batches, over="mode"):
    observer = PowerOfTwoSearchObserver(spec, over=over)
    for x in batches:
        observer.observe(x)
    return observer


@pytest.mark.parametrize("rule", ["ceil", "nearest", "floor"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS.keys() - {"few values"}))
def test_a_batch_gets_the_scale_of_least_error(name, symmetric, bits, rule):
    x, spec = DISTRIBUTIONS[name](8000), spec_of(bits, rule, symmetric=symmetric)
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    least = min(error_of(spec, x, low * 2.0**-k, high * 2.0**-k) for k in range(0 if rule == "ceil" else -1, 8))
    observer = shown(spec, x)
    assert error_of(spec, x, *observer.range()) <= 1.02 * least
    measured = PowerOfTwoSearchObserver(spec).measure(x)
    assert error_of(spec, x, *measured) == pytest.approx(least, rel=1e-4)


def batches_for(*exponents):
    """Evenly spread values that a signed symmetric range of 4 bits holds exactly at these scales."""
    return [torch.linspace(-8, 7.4, 5001) * 2.0**exponent for exponent in exponents]


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([-3, -3, -3, -1, 2], {"mode": -3, "median": -3, "mean": -2, "maximum": 2}),
        ([0, 0, 4, 4], {"mode": 4, "median": 4, "mean": 2, "maximum": 4}),  # even: the larger scale
        ([-2, -1], {"mode": -1, "median": -1, "mean": -1, "maximum": -1}),
        ([1, -5, 1, -4, -4], {"mode": 1, "median": -4, "mean": -2, "maximum": 1}),
        ([-60], dict.fromkeys(OVER, -60)),
        ([60], dict.fromkeys(OVER, 60)),
    ],
)
@pytest.mark.parametrize("over", OVER)
def test_the_votes_of_the_batches_decide(votes, expected, over):
    observer = shown(spec_of(symmetric=True), *batches_for(*votes), over=over)
    for vote in votes:
        assert observer.votes[vote - LEAST] == votes.count(vote)
    assert scale_of(observer) == 2.0 ** expected[over]
    assert observer.votes.sum() == len(votes)


@pytest.mark.parametrize("over", OVER)
def test_a_batch_of_zeros_or_of_no_numbers_does_not_vote(over):
    data = batches_for(-2, -2, 3)
    observer = shown(spec_of(symmetric=True), data[0], *[torch.zeros(9)] * 5, *data[1:], over=over)
    assert observer.votes.sum() == 3
    assert scale_of(observer) == scale_of(shown(spec_of(symmetric=True), *data, over=over))
    observer.observe(torch.tensor([1.0, float("nan")]))
    assert observer.votes.sum() == 3
    nothing = shown(spec_of(), torch.zeros(9), over=over)
    assert torch.stack(nothing.range()).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("rule", ["ceil", "nearest", "floor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_range_has_the_very_scale_that_was_voted_for(over, rule, symmetric):
    data = [normal(2000, seed=seed) * (seed + 1) for seed in range(5)]
    observer = shown(spec_of(rule=rule, symmetric=symmetric), *data, over=over)
    exponents = sorted(e + LEAST for e in observer.votes.nonzero()[:, 0].tolist())
    assert exponents[0] <= torch.tensor(scale_of(observer)).log2() <= exponents[-1]
    if over == "maximum":
        assert scale_of(observer) == 2.0 ** exponents[-1]


def test_a_limit_of_the_range_limits_the_search():
    x = 100 * normal(5000)
    observer = shown(spec_of(8, symmetric=True, range_max=16.0), x)
    assert scale_of(observer) == 16 / 128
    assert observer.high == x.max()


def test_each_channel_of_a_weight_has_its_own():
    weight = torch.stack(batches_for(-3, 0, 2))
    low, high = PowerOfTwoSearchObserver(spec_of(symmetric=True, sign="signed"), axis=0).measure(weight)
    assert qparams_of_range(spec_of(symmetric=True, sign="signed"), low, high).scale.tolist() == [1 / 8, 1.0, 4.0]


def test_a_spec_of_free_scales_and_an_unknown_way_to_agree_are_refused():
    with pytest.raises(SpecError, match=r'power_of_two_search.* set scale = "power_of_two"'):
        TensorSpec(observer=Method("power_of_two_search"))
    with pytest.raises(SpecError, match=r'power_of_two_search.* set scale = "power_of_two"'):
        TensorSpec(training_observer=Method("power_of_two_search"))
    with pytest.raises(SpecError, match=r"observer\.over is 'modal'. Did you mean 'mode'"):
        spec_of(observer=Method("power_of_two_search", (("over", "modal"),)))
