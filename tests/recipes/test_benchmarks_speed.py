"""Timing, and the tasks that are timed."""

import time

import pytest
import torch
from torch import nn

from recipes.benchmarks import speed, tasks, timing
from recipes.benchmarks.bars import Bar
from recipes.benchmarks.torch_ao import find_torch_ao
from tests.networks import batches, network

EVERY_TASK = [
    "training step",
    "training step, frozen",
    "calibration pass",
    "prepare, calibrate, convert",
    "simulated evaluation",
    "converted inference",
    "prepare for training",
    "prepare for calibration",
]


def subject(peer=True, name="residual"):
    model, data = network(name), batches(2)
    found = find_torch_ao(model, data[0])[0] if peer else None
    return tasks.Subject(name, model, data, "DEFAULT", "qnnpack", found)


@pytest.fixture(autouse=True)
def little_garbage(monkeypatch):
    """Tests leave little of it, and looking for it takes long among all that pytest holds."""
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when a test moves it, by adding to its only item."""
    now = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_ratio_is_the_median_of_the_ratios_of_each_round_not_the_ratio_of_the_medians():
    times = timing.Times({"own": [2.0, 9.0, 4.0], "float": [1.0, 3.0, 8.0]})
    assert times.ratio("own", "float") == 2.0  # of 2, 3 and 0.5; the medians would give 4 / 3
    assert times.quartiles("own", "float") == (1.25, 2.5)
    assert times.milliseconds("float") == 3000.0


def test_one_round_has_quartiles_too():
    assert timing.Times({"own": [3.0], "float": [2.0]}).quartiles("own", "float") == (1.5, 1.5)


def test_contestants_take_turns_and_neither_setups_nor_warm_up_rounds_count(clock):
    order = []

    def contestant(name, seconds):
        def setup():
            clock[0] += 100.0

            def run():
                order.append(name)
                clock[0] += seconds + 50.0 * (len(order) <= 4)  # the first two rounds are slow

            return run

        return setup

    times = timing.interleaved({"float": contestant("float", 1.0), "own": contestant("own", 3.0)}, 2, "", warmup=2)
    assert order == ["float", "own"] * 4
    assert times.seconds == {"float": [1.0, 1.0], "own": [3.0, 3.0]}


def test_every_task_runs_and_gives_a_row_with_a_verdict_where_there_is_a_bar():
    section = speed.measure([subject(peer=False)], rounds=1)
    assert [row["task"] for row in section.rows] == EVERY_TASK
    for row in section.rows:
        ratio, bar, verdict = row["edgeq / float"], row["bar"], row["verdict"]
        limit = float(bar.removeprefix("<= ")) if bar else None
        assert ratio > 0
        assert verdict == (None if limit is None else "met" if ratio <= limit else "missed")
    assert [row["task"] for row in section.rows if row["bar"] is None] == EVERY_TASK[5:]  # no peer, no such network


def test_torch_ao_takes_part_in_every_task():
    own = subject()
    assert all(list(task.contestants) == ["float", "edgeq", "torch.ao"] for task in tasks.tasks(own))
    row = speed.row(own, tasks.simulated(own), rounds=1)
    assert row["edgeq / torch.ao"] == pytest.approx(row["edgeq / float"] / row["torch.ao / float"])


@pytest.mark.parametrize(("seconds", "verdict"), [(11.0, "met"), (12.0, "missed")])
def test_a_verdict_compares_with_the_contestant_that_the_bar_is_for(clock, seconds, verdict):
    def taking(seconds):
        def run():
            clock[0] += seconds

        return lambda: run

    contestants = {"float": taking(1.0), "edgeq": taking(seconds), "torch.ao": taking(10.0)}
    row = speed.row(subject(False), tasks.Task("prepare", contestants, Bar(1.1), against="torch.ao"), 1)
    assert (row["verdict"], row["edgeq / float"]) == (verdict, seconds)


def test_without_the_peer_its_columns_are_empty_and_so_are_the_verdicts_that_need_it():
    row = speed.row(subject(False), tasks.preparation_for_training(subject(False)), 1)
    assert [row[column] for column in ("torch.ao / float", "edgeq / torch.ao", "bar", "verdict")] == [None] * 4


@pytest.mark.parametrize(("vnni", "batch", "limit"), [(True, 16, 0.15), (True, 8, None), (False, 16, None)], ids=str)
def test_the_bar_of_converted_inference_is_for_cpus_with_vnni_and_its_batch(monkeypatch, vnni, batch, limit):
    monkeypatch.setattr(tasks, "has_vnni", lambda: vnni)
    one = tasks.Subject("resnet18", network("residual"), batches(1, size=batch), "DEFAULT", "qnnpack", None)
    bar = tasks.converted(one).bar
    assert (bar and bar.limit) == limit


def test_a_frozen_step_moves_weights_but_neither_ranges_nor_statistics(monkeypatch):
    made = []
    original = tasks.Subject.for_training
    monkeypatch.setattr(tasks.Subject, "for_training", lambda self: made.append(original(self)) or made[-1])
    task = tasks.frozen_step(subject(False))
    before = {key: value.clone() for key, value in made[0].module.state_dict().items()}
    task.contestants["edgeq"]()()
    after = made[0].module.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert "conv1.weight" in moved
    assert not [key for key in moved if "running" in key or key.endswith("scale")]


def test_a_calibration_starts_from_a_network_that_was_not_calibrated_each_round():
    own = subject(False)
    first, second = (tasks.calibration_pass(own).contestants["edgeq"]() for _ in range(2))
    assert first is not second
    before = {key: value.clone() for key, value in own.model.state_dict().items()}
    tasks.whole_calibration(own).contestants["edgeq"]()()
    assert all(torch.equal(value, before[key]) for key, value in own.model.state_dict().items())


class Branching(nn.Module):
    """What symbolic tracing cannot follow."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


def test_a_peer_that_cannot_take_the_network_is_left_out_with_its_reason():
    peer, reason = find_torch_ao(Branching(), torch.ones(1, 4))
    assert peer is None
    assert reason.startswith("torch.ao is left out: TraceError: symbolically traced variables cannot be used")
