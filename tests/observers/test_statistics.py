"""Ranges of means and deviations, and of mean magnitudes."""

import pytest
import torch

from edgeq.observers.registry import OBSERVERS
from edgeq.spec import TensorSpec
from tests.observers.data import normal

WEIGHT = TensorSpec(bits=4, symmetric=True, sign="signed")


@pytest.mark.parametrize("count", [1.0, 2.6])
def test_deviations_lie_on_either_side_of_the_mean(count):
    x = normal(500) + 0.5
    low, high = OBSERVERS["deviations"](WEIGHT, count=count).measure(x)
    mean, deviation = float(x.mean()), float(x.std(correction=0))
    assert [float(low), float(high)] == pytest.approx([mean - count * deviation, mean + count * deviation], rel=1e-5)


def test_no_range_reaches_beyond_the_extremes():
    x = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    for name in ("deviations", "mean_magnitude"):
        assert torch.stack(OBSERVERS[name](WEIGHT).measure(x)).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(("spec", "greatest"), [(WEIGHT, 7), (TensorSpec(bits=4, symmetric=True), 15)])
def test_the_step_of_mean_magnitudes_is_lsqs(spec, greatest):
    x = normal(20_000) * torch.linspace(0, 3, 20_000) ** 4  # long tails
    low, high = OBSERVERS["mean_magnitude"](spec).measure(x)
    assert float(high) / greatest == pytest.approx(2 * float(x.abs().mean()) / greatest**0.5, rel=1e-5)
    assert float(low) == -float(high)


@pytest.mark.parametrize("name", ["deviations", "mean_magnitude"])
def test_statistics_are_means_over_the_batches(name):
    batches = [normal(1000, seed=seed) * (seed + 1) for seed in range(3)]
    observer = OBSERVERS[name](TensorSpec())
    alone = []
    for x in batches:
        observer.observe(x)
        single = OBSERVERS[name](TensorSpec())
        single.observe(x)
        alone.append(single.statistics)
    assert torch.allclose(observer.statistics, torch.stack(alone).mean(0), rtol=1e-5)
