"""Peaks of memory, in bytes."""

import pytest
import torch

from recipes.benchmarks import memory
from tests.recipes.test_benchmarks_speed import EVERY_TASK, subject


def test_the_peak_is_the_most_that_is_held_at_one_time_in_bytes():
    before = [torch.zeros(50_000)]

    def run():
        before.clear()  # a release of what was there before is no credit
        first = torch.zeros(1000)
        del first
        second, third = torch.zeros(500), torch.zeros(2000)
        del second
        return third.zero_(), torch.zeros(100)

    assert memory.peak(run) == 4 * (500 + 2000)


def test_what_a_first_run_leaves_behind_counts_in_the_second():
    kept = []

    def run():
        held = torch.zeros(1000)
        if not kept:
            kept.append(torch.zeros(300))
        return held

    assert memory.peak(run) == 4 * (1000 + 300)


def test_memory_has_a_row_for_each_task_and_is_the_same_number_each_time():
    first, second = (memory.measure([subject(False)]).rows for _ in range(2))
    for row, again in zip(first, second, strict=True):  # PyTorch's own buffers of a few bytes come and go
        assert row.keys() == again.keys()
        assert row["edgeq MiB"] == pytest.approx(again["edgeq MiB"], rel=0.01)
        assert row["float MiB"] == again["float MiB"]
    assert [row["task"] for row in first] == [EVERY_TASK[index] for index in (0, 1, 3, 4, 5)]
