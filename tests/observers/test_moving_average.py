"""Ranges that follow: the closed form of the exponential average, and percentiles without sorting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edgeq
from edgeq.observers.moving_average import MovingAverageObserver
from edgeq.observers.sampling import sample
from edgeq.spec import TensorSpec
from tests.observers.data import normal, uniform


@settings(deadline=None, max_examples=100)
@given(
    ends=st.lists(st.tuples(st.floats(-100, 0), st.floats(0, 100)), min_size=1, max_size=12),
    momentum=st.floats(0, 1),
)
def test_the_range_is_the_exponential_average_of_the_batches(ends, momentum):
    """The first batch weighs (1-m)^(n-1), batch k from the second on m (1-m)^(n-1-k)."""
    observer = MovingAverageObserver(TensorSpec(), momentum=momentum)
    for pair in ends:
        observer.observe(torch.tensor(pair))
    last = len(ends) - 1
    weights = [(momentum if k else 1.0) * (1 - momentum) ** (last - k) for k in range(len(ends))]
    expected = [sum(w * pair[side] for w, pair in zip(weights, ends, strict=True)) for side in (0, 1)]
    assert torch.stack(observer.range()).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_the_first_batch_sets_the_range_exactly():
    observer = MovingAverageObserver(TensorSpec(), momentum=0.01)
    observer.observe(torch.tensor([-0.3, 0.7]))
    assert torch.equal(torch.stack(observer.range()), torch.tensor([-0.3, 0.7]))


def test_channels_move_by_themselves():
    observer = MovingAverageObserver(TensorSpec(), 2, 0, momentum=0.5)
    observer.observe(torch.tensor([[-1.0, 1.0], [-4.0, 0.0]]))
    observer.observe(torch.tensor([[-3.0, 2.0], [0.0, 8.0]]))
    assert torch.stack(observer.range()).tolist() == [[-2.0, -2.0], [1.5, 4.0]]


@pytest.mark.parametrize("percentile", [0.01, 0.1, 1.0, 10.0])
def test_with_a_percentile_the_extremes_are_those_of_as_many_values(percentile):
    x = normal(300_000)
    observer = MovingAverageObserver(TensorSpec(), percentile=percentile)
    observer.observe(x)
    values = sample(x, round(100 / percentile))
    assert torch.stack(observer.range()).tolist() == [values.min(), values.max()]
    assert len(values) == pytest.approx(100 / percentile, rel=0.2)


@pytest.mark.parametrize("percentile", [0.1, 1.0])
def test_on_average_the_percentage_is_cut_off_each_end(percentile):
    observer = MovingAverageObserver(TensorSpec(), percentile=percentile, momentum=0.01)
    for seed in range(300):
        observer.observe(uniform(50_000, seed=seed))
    low, high = observer.range()
    assert 100 * low.item() == pytest.approx(percentile, rel=0.25)
    assert 100 * (1 - high.item()) == pytest.approx(percentile, rel=0.25)


def test_tensors_that_share_a_range_are_averaged_as_one():
    observer = MovingAverageObserver(TensorSpec(), momentum=0.1)
    observer.share(2)
    narrow, wide = torch.tensor([-2.5, 2.0]), torch.tensor([-25.0, 20.0])
    observer.observe(narrow)
    assert observer.range() == (-2.5, 2.0)  # in the first step, of what there is so far
    observer.observe(wide)
    assert observer.range() == (-25.0, 20.0)
    for _ in range(50):
        observer.observe(narrow)
        observer.observe(wide)
    assert observer.range() == (-25.0, 20.0)
    observer.observe(2 * narrow)
    assert observer.range() == (-25.0, 20.0)  # the step is not over
    observer.observe(2 * wide)
    assert observer.range()[0] == pytest.approx(-27.5)
    assert observer.range()[1] == pytest.approx(22.0)


def test_a_training_finds_the_range_of_a_concatenation():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)
            with torch.no_grad():
                self.wide.weight.copy_(10 * self.narrow.weight)
                self.wide.bias.copy_(10 * self.narrow.bias)

        def forward(self, x):
            return self.head(torch.cat([self.wide(x), self.narrow(x)], 1))

    torch.manual_seed(0)
    model, x = Joined(), torch.randn(16, 3, 8, 8)
    training = edgeq.QATFxModule(model, total_epochs=4).train()
    for _ in range(30):
        training(x)
    (shared,) = (q for q in training.module.quantizers() if q.observer.tensors == 2)
    wide = model.wide(x)
    assert shared.observer.low == pytest.approx(wide.min().item(), rel=0.05)
    assert shared.observer.high == pytest.approx(wide.max().item(), rel=0.05)
