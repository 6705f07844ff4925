"""Histograms whose bins merge without loss, and the quantiles read off them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.observers.histogram import BINS, HALF, HistogramObserver, PercentileObserver
from edgeq.observers.sampling import SAMPLES
from edgeq.spec import TensorSpec
from tests.observers.data import DISTRIBUTIONS, normal
from tests.strategies import tensors

# Of sizes between which no quotient underflows.
NUMBERS = st.floats(-(2.0**60), 2.0**60, width=32).map(lambda x: x if abs(x) > 2.0**-60 else 0.0)


def shown(*batches, observer=HistogramObserver, **options):
    made = observer(TensorSpec(), **options)
    for x in batches:
        made.observe(x)
    return made


def width(observer):
    return 2.0 ** int(observer.exponent)


@settings(deadline=None, max_examples=150)
@given(
    batches=st.lists(tensors(NUMBERS), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_counts_are_those_of_all_values_in_the_final_bins_whatever_the_order(batches, order):
    observer = shown(*batches)
    values = torch.cat(batches).double()
    bins = torch.floor(values / width(observer)).long() + HALF
    assert torch.equal(observer.counts, torch.bincount(bins, minlength=BINS).float())
    order.shuffle(batches)
    assert torch.equal(shown(*batches).counts, observer.counts)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_side_that_reaches_further_fills_half_of_its_bins_or_more(name):
    x = DISTRIBUTIONS[name](5000)
    observer = shown(0.001 * x, x)
    assert 1024 <= x.abs().max() / width(observer) < 2048
    assert observer.edges()[0] == -HALF * width(observer)
    assert observer.edges()[-1] == HALF * width(observer)


def test_a_value_on_the_outermost_edge_still_falls_into_a_bin():
    for value in (-1.0, 1.0, -2048.0, 2048.0):
        observer = shown(torch.tensor([value]))
        assert observer.counts.sum() == 1
        index = int(observer.counts.argmax())
        assert observer.edges()[index] <= value < observer.edges()[index + 1]


def test_a_large_batch_is_sampled_in_constant_memory():
    observer = shown(normal(1_000_000))
    assert 0.8 * SAMPLES <= observer.counts.sum() <= 1.2 * SAMPLES


@pytest.mark.parametrize("percentile", [0.01, 0.1, 1.0, 10.0, 49.0])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_quantiles_are_numpys_to_the_width_of_a_bin(name, percentile):
    x = DISTRIBUTIONS[name](20_000)
    observer = shown(*x.split(3000), observer=PercentileObserver, percentile=percentile)
    step = width(observer)
    low, high = (end.item() for end in observer.range())
    around = 1 / len(x)  # between the order statistics on either side of the quantile
    for end, share in ((low, percentile / 100), (high, 1 - percentile / 100)):
        below = np.quantile(x.numpy(), max(share - around, 0), method="inverted_cdf")
        above = np.quantile(x.numpy(), min(share + around, 1), method="inverted_cdf")
        assert below - step <= end <= above + step


@pytest.mark.parametrize("percentile", [0.01, 0.5, 2.0])
def test_as_many_values_as_the_percentile_says_lie_outside_at_each_end(percentile):
    x = normal(30_000)
    low, high = shown(x, observer=PercentileObserver, percentile=percentile).range()
    assert (x < low).sum().item() == pytest.approx(percentile * 300, rel=0.05, abs=1)
    assert (x > high).sum().item() == pytest.approx(percentile * 300, rel=0.05, abs=1)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_percentile_0_is_the_extremes_and_none_reaches_beyond_them(name):
    x = DISTRIBUTIONS[name](5000)
    assert torch.stack(shown(x, observer=PercentileObserver, percentile=0.0).range()).tolist() == [x.min(), x.max()]
    low, high = shown(x, observer=PercentileObserver, percentile=0.01).range()
    assert x.min() <= low <= high <= x.max()


def test_extremes_that_the_sample_missed_count_with_percentile_0_only():
    x = normal(1_000_001)
    x[1] = 100.0  # every 61st value is sampled
    assert shown(x, observer=PercentileObserver, percentile=0.0).range()[1] == 100
    assert shown(x, observer=PercentileObserver, percentile=0.01).range()[1] < 5


def test_ends_lie_inside_of_bins_not_on_their_grid():
    x = normal(20_001)  # of which 0.3 per cent is no whole number
    low, high = shown(x, observer=PercentileObserver, percentile=0.3).range()
    step = width(shown(x))
    assert low.item() % step != 0
    assert high.item() % step != 0


def test_the_default_is_one_value_in_ten_thousand():
    assert PercentileObserver(TensorSpec()).percentile == 0.01


def held(observer):
    return observer.counts.untyped_storage().nbytes()


def test_there_is_memory_for_the_bins_from_the_first_batch_on_in_the_same_buffer():
    observer = HistogramObserver(TensorSpec())
    known = observer.counts
    observer.to(torch.bfloat16)
    assert held(observer) == 0
    observer.observe(torch.zeros(0))  # of a process that got no data, whose buffers are sent around with the others'
    assert observer.counts is known
    assert held(observer) == 4 * BINS
    assert not observer.counts.any()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda observer: pickle.loads(pickle.dumps(observer))])
def test_a_copy_has_memory_that_can_be_written_to(duplicate):
    observer, other = HistogramObserver(TensorSpec()), shown(normal(100))
    made = duplicate(observer)
    assert held(observer) == 0
    made.counts.copy_(other.counts)
    assert torch.equal(made.counts, other.counts)


def test_a_saved_histogram_has_all_bins_and_loads_before_the_first_batch():
    observer, other = HistogramObserver(TensorSpec()), shown(normal(100))
    assert observer.load_state_dict({}, strict=False).missing_keys == ["batches", "low", "high", "counts", "exponent"]
    assert held(observer) == 0
    observer.load_state_dict(other.state_dict())
    assert torch.equal(observer.counts, other.counts)
    fresh = HistogramObserver(TensorSpec())
    state = fresh.state_dict()
    assert state["counts"].shape == (BINS,)
    assert state["counts"].data_ptr() == fresh.counts.data_ptr()


def test_what_was_observed_in_inference_mode_is_observed_further_outside_of_it():
    x, y = normal(100), 3 * normal(200)
    observer = HistogramObserver(TensorSpec())
    with torch.inference_mode():
        observer.observe(x)
    observer.observe(y)
    assert not observer.counts.is_inference()
    assert torch.equal(observer.counts, shown(x, y).counts)
