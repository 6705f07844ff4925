"""Merging what several processes saw: threads with a real gloo group each stand for the processes."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import get_ident

import pytest
import torch
import torch.distributed as dist

from edgeq.observers.registry import OBSERVERS
from edgeq.qparams import qparams_of_range
from edgeq.spec import TensorSpec
from tests.observers.data import normal, spec_for

SHARDS = [normal(1000, seed=0), 3 * normal(800, seed=1) + 1, 0.1 * normal(500, seed=2)]


@pytest.fixture
def merged(monkeypatch):
    """A function that merges observers, each in a thread of its own."""

    def merge(*observers):
        store, groups = dist.HashStore(), {}

        def all_gather(parts, x):
            groups[get_ident()].allgather([parts], [x]).wait()

        def all_reduce(x, op=dist.ReduceOp.SUM):
            options = dist.AllreduceOptions()
            options.reduceOp = op
            groups[get_ident()].allreduce([x], options).wait()

        def work(rank):
            groups[get_ident()] = dist.ProcessGroupGloo(store, rank, len(observers), timedelta(seconds=60))
            observers[rank].merge_processes()

        with monkeypatch.context() as patch, ThreadPoolExecutor(len(observers)) as pool:
            patch.setattr(dist, "all_gather", all_gather)
            patch.setattr(dist, "all_reduce", all_reduce)
            patch.setattr(dist, "get_world_size", lambda: len(observers))
            list(pool.map(work, range(len(observers))))
        return observers

    return merge


def shown(name, *batches, **options):
    observer = OBSERVERS[name](spec_for(name), **options)
    for x in batches:
        observer.observe(x)
    return observer


def ends(observer):
    return torch.stack(observer.range())


@pytest.mark.parametrize("name", list(OBSERVERS))
def test_all_processes_end_alike_and_merging_again_changes_nothing(merged, name):
    observers = merged(*(shown(name, x) for x in SHARDS))
    first = ends(observers[0])
    assert all(torch.equal(ends(observer), first) for observer in observers)
    assert all(torch.equal(ends(observer), first) for observer in merged(*observers))


@pytest.mark.parametrize(("name", "options"), [("minmax", {}), ("percentile", {"percentile": 0.0})])
def test_extremes_are_those_of_all_processes(merged, name, options):
    observers = merged(*(shown(name, x, **options) for x in SHARDS))
    everything = torch.cat(SHARDS)
    assert ends(observers[2]).tolist() == [everything.min(), everything.max()]


def test_a_moving_average_is_the_mean_of_the_processes(merged):
    separate = [shown("moving_average", x) for x in SHARDS]
    expected = torch.stack([ends(observer) for observer in separate]).mean(0)
    assert torch.allclose(ends(merged(*separate)[1]), expected)


@pytest.mark.parametrize("name", ["percentile", "squared_error", "entropy"])
def test_histograms_of_different_widths_merge_to_the_histogram_of_all(merged, name):
    observers = merged(*(shown(name, x) for x in SHARDS))
    whole = shown(name, *SHARDS)
    assert int(observers[0].exponent) == int(whole.exponent)
    assert torch.allclose(observers[0].counts * len(SHARDS), whole.counts, rtol=1e-5)
    assert torch.allclose(ends(observers[0]), ends(whole), rtol=1e-4)


@pytest.mark.parametrize("name", list(OBSERVERS))
def test_a_process_that_saw_nothing_takes_over_and_does_not_count(merged, name):
    x = SHARDS[1] + 20  # all above zero, so that the zeros of a fresh observer would show
    idle, busy = merged(shown(name), shown(name, x))
    assert torch.equal(ends(idle), ends(busy))
    assert torch.allclose(ends(idle), ends(shown(name, x)), rtol=1e-5)
    assert idle.batches == 1


@pytest.mark.parametrize("name", list(OBSERVERS))
def test_where_nothing_was_seen_nothing_comes_of_it(merged, name):
    for observer in merged(shown(name), shown(name)):
        assert ends(observer).tolist() == [0.0, 0.0]
        assert observer.batches == 0


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", list(OBSERVERS))
def test_nan_in_one_process_stays_visible_in_all(merged, name, rank):
    data = [torch.ones(5), torch.ones(5)]
    data[rank] = torch.tensor([1.0, float("nan")])
    for observer in merged(*(shown(name, x) for x in data)):
        assert not bool(torch.isfinite(torch.stack([observer.low, observer.high])).all())


def test_channels_merge_one_by_one(merged):
    observers = [OBSERVERS["minmax"](TensorSpec(), 2, 0) for _ in range(2)]
    observers[0].observe(torch.tensor([[-1.0, 1.0], [0.0, 5.0]]))
    observers[1].observe(torch.tensor([[0.0, 2.0], [-3.0, 1.0]]))
    assert ends(merged(*observers)[0]).tolist() == [[-1.0, -3.0], [2.0, 5.0]]


@pytest.mark.parametrize(("over", "exponent"), [("mode", -3), ("median", -3), ("mean", -1), ("maximum", 4)])
def test_votes_of_all_processes_count_alike_once_or_more_often(merged, over, exponent):
    votes = [(-3, -3, 4), (-3,), (0,)]  # on average -1
    spec = TensorSpec(bits=4, symmetric=True, scale="power_of_two")
    observers = [OBSERVERS["power_of_two_search"](spec, over=over) for _ in votes]
    for observer, exponents in zip(observers, votes, strict=True):
        for vote in exponents:
            observer.observe(torch.linspace(-8, 7.4, 501) * 2.0**vote)
    for _ in range(3):
        for observer in merged(*observers):
            assert qparams_of_range(spec, *observer.range()).scale == 2.0**exponent
