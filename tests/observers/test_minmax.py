"""The extremes of everything seen, exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.observers.base import flat
from edgeq.observers.minmax import MinMaxObserver
from edgeq.spec import TensorSpec
from tests.observers.data import normal
from tests.quantizers.layouts import LAYOUTS
from tests.strategies import numbers, tensors


@settings(deadline=None, max_examples=150)
@given(batches=st.lists(tensors(numbers), max_size=5))
def test_the_range_is_that_of_all_values_of_all_batches(batches):
    observer = MinMaxObserver(TensorSpec())
    for x in batches:
        observer.observe(x)
    everything = torch.cat([*batches, torch.zeros(0)])
    expected = [0.0, 0.0] if everything.numel() == 0 else [everything.min(), everything.max()]
    assert torch.stack(observer.range()).tolist() == expected
    assert observer.batches == sum(x.numel() > 0 for x in batches)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_channel_has_its_own_range(axis):
    observer = MinMaxObserver(TensorSpec(), 4, axis)
    x, y = normal(4, 4, 4), 2 * normal(4, 4, 4, seed=1)
    observer.observe(x)
    observer.observe(y)
    both = torch.stack([x, y])
    others = [0] + [dim + 1 for dim in range(3) if dim != axis]
    low, high = observer.range()
    assert torch.equal(low, both.amin(others))
    assert torch.equal(high, both.amax(others))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_extremes_of_every_layout(layout):
    x = LAYOUTS[layout]()
    observer = MinMaxObserver(TensorSpec())
    observer.observe(x)
    expected = [x.min().item(), x.max().item()] if x.numel() else [0.0, 0.0]
    assert torch.stack(observer.range()).tolist() == expected
    assert flat(x).sort().values.tolist() == x.reshape(-1).sort().values.tolist()


def test_only_dense_tensors_are_read_in_the_order_of_their_memory():
    x = normal(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert flat(x).data_ptr() == x.data_ptr()
    assert torch.equal(flat(x), x.permute(0, 2, 3, 1).reshape(-1))


def test_a_measured_tensor_does_not_count_as_seen():
    observer = MinMaxObserver(TensorSpec())
    assert torch.stack(observer.measure(torch.tensor([-3.0, 2.0]))).tolist() == [-3.0, 2.0]
    assert observer.batches == 0
    assert torch.stack(observer.range()).tolist() == [0.0, 0.0]
