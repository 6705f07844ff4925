"""What a candidate range costs, from sums over a histogram."""

import numpy as np
import pytest
import torch

from edgeq.observers.histogram import HistogramObserver
from edgeq.observers.histogram_error import Moments, PowerMoments, error_on
from edgeq.spec import TensorSpec
from tests.observers.data import DISTRIBUTIONS, normal


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


def histogram(x):
    observer = HistogramObserver(TensorSpec())
    observer.observe(x)
    return observer.edges(), observer.counts.double()


@pytest.mark.parametrize(("power", "close"), [(1.0, 1e-9), (2.4, 1e-6), (4.0, 1e-2)])
@pytest.mark.parametrize("name", ["normal", "heavy tails", "with outliers", "negative"])
def test_the_cost_of_clipping_is_that_of_the_bins(name, power, close):
    """In widths of a bin, of which a step of 8 bits has four or more."""
    edges, counts = histogram(DISTRIBUTIONS[name](9000))
    width = edges[1] - edges[0]
    centres, moments = (edges[1:] + edges[:-1]) / 2 / width, PowerMoments(edges, counts, power)
    for end in (0, 100, 1900, 2048, 2300, 3900, 4096):
        below, above = (value.item() for value in moments.at(edges[end])[2:])
        costs = [(counts * (sign * (centres - end + 2048)).clamp(min=0) ** power).sum().item() for sign in (-1, 1)]
        assert end > 2048 or below == pytest.approx(costs[0], abs=close * len(centres))
        assert end < 2048 or above == pytest.approx(costs[1], abs=close * len(centres))


@pytest.mark.parametrize("power", [1.5, 2.0, 2.4, 3.0])
@pytest.mark.parametrize(("step", "codes"), [(0.5, 4), (0.2, 8), (0.03, 128)])
def test_the_error_is_that_of_quantizing_the_values(power, step, codes):
    x = normal(16_000).double()
    kept = (x / step).round().clamp(-codes, codes) * step
    edges, counts = histogram(x.float())
    unit = 1 if power == 2 else (edges[1] - edges[0]) ** power
    ends = [torch.tensor([end], dtype=torch.float64) for end in (-codes * step, codes * step, step)]
    found = error_on(edges, counts, power).error(*ends) * unit
    assert found.item() == pytest.approx((kept - x).abs().pow(power).sum().item(), rel=0.03)


def test_squares_are_summed_exactly_and_other_powers_agree_with_them():
    edges, counts = histogram(normal(16_000))
    assert type(error_on(edges, counts, 2.0)) is Moments
    high = torch.linspace(0.5, 4, 30, dtype=torch.float64)
    squares = Moments(edges, counts).error(-high, high, high / 7)
    powers = PowerMoments(edges, counts, 2.0).error(-high, high, high / 7) * (edges[1] - edges[0]) ** 2
    assert torch.allclose(squares, powers, rtol=0.01)
