"""Samples of a fixed size that pass over no channel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.observers.sampling import SAMPLES, sample, stride
from tests.observers.data import normal


@settings(deadline=None, max_examples=300)
@given(numel=st.integers(1, 10**8), samples=st.sampled_from([100, 10_000, SAMPLES]))
def test_the_step_is_one_or_a_prime_that_leaves_about_as_many_values(numel, samples):
    step = stride(numel, samples)
    assert step == 1 or (numel % step and all(step % d for d in range(2, int(step**0.5) + 1)))
    count = -(-numel // step)
    assert min(numel, samples / 7) <= count <= 2 * samples  # 13 where 2, 3, 5, 7 and 11 divide numel


@pytest.mark.parametrize("shape", [(8, 96, 30, 30), (4, 64, 56, 56), (2, 3, 224, 224), (16, 210, 14, 14)])
def test_every_channel_has_its_share_of_the_sample(shape):
    channel = torch.arange(float(shape[1]))[:, None, None].expand(shape)
    for x in (channel.contiguous(), channel.contiguous(memory_format=torch.channels_last)):
        counts = torch.bincount(sample(x).long(), minlength=shape[1])
        assert counts.min() > 0.7 * counts.float().mean()
        assert counts.max() < 1.3 * counts.float().mean()


def test_small_tensors_are_taken_whole():
    x = normal(3, 5, 7)
    assert torch.equal(sample(x), x.reshape(-1))
    assert sample(torch.zeros(0)).shape == (0,)
    assert sample(torch.tensor(3.0)).tolist() == [3.0]


def test_the_sample_is_every_kth_value():
    x = torch.arange(1000.0)
    assert sample(x, 100).tolist() == list(range(0, 1000, 11))
