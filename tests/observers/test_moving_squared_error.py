"""Ranges of least squared error that follow: batch by batch the search on that batch, averaged."""

import pytest
import torch

import edgeq
from edgeq.observers.moving_squared_error import MovingSquaredErrorObserver
from edgeq.observers.squared_error import SquaredErrorObserver
from edgeq.spec import TensorSpec
from tests.networks import batches, network
from tests.observers.data import DISTRIBUTIONS, normal

FOUR_BITS = TensorSpec(bits=4, symmetric=True)
BATCHES = [(seed + 1) * normal(5000, seed=seed) for seed in range(4)]


def found(spec, x, **options):
    observer = SquaredErrorObserver(spec, candidates=33, **options)
    observer.observe(x)
    return torch.stack(observer.range())


@pytest.mark.parametrize("power", [2.0, 2.4])
@pytest.mark.parametrize("spec", [FOUR_BITS, TensorSpec(bits=4), TensorSpec()], ids=["symmetric", "affine", "8 bits"])
def test_the_range_is_the_exponential_average_of_what_is_best_for_each_batch(spec, power):
    observer = MovingSquaredErrorObserver(spec, momentum=0.3, power=power)
    expected = found(spec, BATCHES[0], power=power)
    for x in BATCHES:
        observer.observe(x)
        expected = 0.7 * expected + 0.3 * found(spec, x, power=power)
    first = MovingSquaredErrorObserver(spec, momentum=0.3, power=power)
    first.observe(BATCHES[0])
    assert torch.equal(torch.stack(first.range()), found(spec, BATCHES[0], power=power))
    assert torch.allclose(torch.stack(observer.range()), expected, rtol=1e-5)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_one_batch_has_the_range_of_squared_error_also_where_one_end_is_zero(name):
    x = DISTRIBUTIONS[name](5000)
    for spec in (FOUR_BITS, TensorSpec(bits=4)):
        observer = MovingSquaredErrorObserver(spec)
        observer.observe(x)
        assert torch.equal(torch.stack(observer.range()), found(spec, x))


def test_a_weight_is_searched_whole():
    weight = normal(3, 400) ** 3
    spec = TensorSpec(bits=4, symmetric=True, sign="signed")
    ends = [
        cls(spec, axis=0, candidates=33).measure(weight) for cls in (MovingSquaredErrorObserver, SquaredErrorObserver)
    ]
    assert torch.equal(torch.stack(ends[0]), torch.stack(ends[1]))


def test_tensors_that_share_a_range_are_averaged_as_one():
    observer = MovingSquaredErrorObserver(FOUR_BITS, momentum=0.5)
    observer.share(2)
    for x in BATCHES[:2]:
        observer.observe(x)
    pair = torch.stack([found(FOUR_BITS, x) for x in BATCHES[:2]])
    assert torch.equal(torch.stack(observer.range()), torch.stack([pair[:, 0].amin(), pair[:, 1].amax()]))


def test_a_training_follows_ranges_of_least_error():
    observer = {"name": "moving_squared_error", "momentum": 0.5}
    preset = {"inherits": "WC8_AT8", "activation": {"bits": 4, "training_observer": observer}}
    torch.manual_seed(0)
    training = edgeq.QATFxModule(network("residual"), preset, total_epochs=4).train()
    for x in batches():
        training(x).square().mean().backward()
    own = [q.observer for q in training.module.quantizers() if q.observer is not None]
    assert len(own) >= 5
    assert all(
        type(observer) is MovingSquaredErrorObserver and int(observer.batches) == len(batches()) for observer in own
    )
    clipped = training.module.quantizers()[0].observer
    assert max(float(x.max()) for x in batches()) > 1.2 * float(clipped.high)
