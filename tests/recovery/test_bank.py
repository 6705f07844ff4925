"""The sample of inputs that a calibration keeps: which, how many, and in which form they come back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.recovery import bank as bank_module
from edgeq.recovery.bank import InputBank


def numbered(start, count):
    """A batch whose samples hold their own number."""
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(count, 3)


def filled(sizes):
    """A bank that has seen batches of these sizes, all samples numbered in a row."""
    bank, start = InputBank(), 0
    for size in sizes:
        bank.add((numbered(start, size),), {}, torch.zeros(size, 2))
        start += size
    return bank


def kept(bank):
    ((x,), kwargs), *others = bank.batches()
    assert (kwargs, others) == ({}, [])
    return [int(number) for number in x[:, 0]]


def test_few_samples_are_all_kept_in_their_order():
    assert kept(filled([5, 1, 58])) == list(range(64))


@pytest.mark.parametrize(
    ("sizes", "stride"), [([65], 2), ([64, 64], 2), ([64] * 4, 4), ([1] * 1000, 16), ([256], 4), ([100, 28], 2)]
)
def test_many_samples_are_thinned_evenly(sizes, stride):
    assert kept(filled(sizes)) == list(range(0, sum(sizes), stride))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12))
def test_the_sample_does_not_depend_on_how_it_came_in_batches(sizes):
    bank = filled(sizes)
    numbers = kept(bank)
    assert numbers == kept(filled([sum(sizes)]))
    assert 32 < len(numbers) <= 64 or numbers == list(range(sum(sizes)))
    assert bank.steps == len(sizes)


def test_memory_is_bounded_by_elements_too(monkeypatch):
    monkeypatch.setattr(bank_module, "ELEMENTS", 100)
    bank = InputBank()
    for start in range(0, 500, 10):
        bank.add((torch.full((10, 5, 2), float(start)),), {}, torch.zeros(10))
        assert len(bank.samples) * 10 <= 100
    assert len(bank.samples) > 5
    bank.clear()
    bank.add((torch.zeros(2, 1000),), {}, torch.zeros(2))
    assert len(bank.samples) == 1  # one at the least


def test_what_is_kept_is_a_copy_without_history():
    bank, x = InputBank(), torch.ones(2, 3, requires_grad=True)
    bank.add((x * 1,), {}, torch.zeros(2))
    y = torch.ones(2, 3)
    bank.add((y,), {}, torch.zeros(2))
    y.zero_()
    ((found,), _) = bank.batches()[0]
    assert torch.equal(found, torch.ones(4, 3))
    assert not found.requires_grad


def test_clearing_forgets_everything():
    bank = filled([200])
    bank.clear()
    assert (bank.steps, bank.samples) == (0, [])
    bank.add((numbered(7, 3),), {}, torch.zeros(3))
    assert kept(bank) == [7, 8, 9]  # the stride is one again


def test_keywords_dicts_and_plain_values_come_back_as_they_were():
    bank = InputBank()
    for start in (0, 2):
        batch = {"ids": numbered(start, 2), "mask": torch.ones(2, 4)}
        bank.add((batch,), {"scale": 0.5, "names": None}, (torch.zeros(2), [torch.zeros(2, 9)]))
    (((batch,), kwargs),) = bank.batches()
    assert kwargs == {"scale": 0.5, "names": None}
    assert batch["ids"][:, 0].tolist() == [0, 1, 2, 3]
    assert batch["mask"].shape == (4, 4)


# ---- what has no batch


def calls_of(*calls):
    """What comes back after calls of (input, output)."""
    bank = InputBank()
    for x, y in calls:
        bank.add((x,), {}, y)
    return [args[0] for args, _ in bank.batches()], bank


def test_a_call_without_a_batch_stays_whole_and_is_never_joined():
    images = [torch.full((3, 8, 8), float(number)) for number in range(5)]
    found, bank = calls_of(*((image, torch.zeros(10)) for image in images))
    assert bank.steps == 5
    assert [x.shape for x in found] == [(3, 8, 8)] * 5
    assert [int(x[0, 0, 0]) for x in found] == [0, 1, 2, 3, 4]


def test_of_many_whole_calls_every_other_one_is_dropped():
    found, _ = calls_of(*((torch.full((3, 4), float(number)), torch.zeros(10)) for number in range(70)))
    assert [int(x[0, 0]) for x in found] == list(range(0, 70, 2))


def test_inputs_that_share_no_first_dimension_stay_whole():
    bank = InputBank()
    for _ in range(2):
        bank.add((torch.zeros(4, 3), torch.zeros(5, 5)), {}, torch.zeros(4))
        bank.add((torch.zeros(4, 3), torch.tensor(3)), {}, torch.zeros(4))
    shapes = [[tuple(x.shape) for x in args] for args, _ in bank.batches()]
    assert shapes == [[(4, 3), (5, 5)], [(4, 3), ()]] * 2


def test_samples_of_unlike_shapes_come_one_by_one():
    found, _ = calls_of((torch.zeros(2, 3, 8, 8), torch.zeros(2)), (torch.zeros(1, 3, 9, 7), torch.zeros(1)))
    assert [x.shape for x in found] == [(1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 9, 7)]


def test_calls_of_unlike_form_or_with_unlike_values_come_one_by_one():
    bank = InputBank()
    bank.add((torch.zeros(1, 3),), {"flag": True}, torch.zeros(1))
    bank.add((torch.zeros(1, 3),), {"flag": False}, torch.zeros(1))
    bank.add((), {"x": torch.zeros(1, 3), "flag": True}, torch.zeros(1))
    assert [(len(args), sorted(kwargs)) for args, kwargs in bank.batches()] == [
        (1, ["flag"]), (1, ["flag"]), (0, ["flag", "x"])
    ]  # fmt: skip


def test_values_that_cannot_be_compared_keep_calls_apart():
    bank = InputBank()
    for number in range(2):
        bank.add((torch.zeros(2, 3), np.full(2, number)), {}, torch.zeros(2))
    found = [(args[0].shape[0], args[1].tolist()) for args, _ in bank.batches()]
    assert found == [(1, [0, 0]), (1, [0, 0]), (1, [1, 1]), (1, [1, 1])]


def test_an_empty_batch_counts_for_nothing():
    bank = filled([3])
    bank.add((torch.zeros(0, 3),), {}, torch.zeros(0, 2))
    assert bank.steps == 1
    assert kept(bank) == [0, 1, 2]
