"""Which epoch observes, which updates batch norms, and where an epoch begins."""

import pytest
import torch

from edgeq.errors import SpecError
from edgeq.schedule import Schedule


def run_epochs(schedule, epochs, steps=1):
    """What a network does with its schedule: an epoch is begun by train(True), each forward is a step."""
    live = []
    for _ in range(epochs):
        if schedule.epoch_is_over():
            schedule.next_epoch()
        live.append((schedule.norms_are_live, schedule.observers_are_live))
        schedule.step.add_(steps)
    return live


@pytest.mark.parametrize(
    ("total", "norms", "observers"), [(1, 1, 1), (2, 1, 2), (3, 1, 2), (4, 1, 3), (5, 1, 3), (10, 4, 6), (25, 11, 13)]
)
def test_by_default_batch_norms_stop_before_the_middle_and_observers_after_it(total, norms, observers):
    live = run_epochs(Schedule.for_training(total), 30)
    assert live == [(epoch < norms, epoch < observers) for epoch in range(30)]


@pytest.mark.parametrize("norms", [0, 1, 3])
@pytest.mark.parametrize("observers", [0, 2])
def test_explicit_numbers_of_epochs_hold_zero_included(norms, observers):
    live = run_epochs(Schedule.for_training(25, norms, observers), 5)
    assert live == [(epoch < norms, epoch < observers) for epoch in range(5)]


def test_an_epoch_without_a_step_is_none():
    schedule = Schedule(1, 1)
    assert not schedule.epoch_is_over()
    schedule.step.add_(1)
    assert schedule.epoch_is_over()
    schedule.next_epoch()
    assert (int(schedule.epoch), int(schedule.step)) == (1, 0)
    assert not schedule.epoch_is_over()


def test_after_set_epoch_only_set_epoch_counts():
    schedule = Schedule(1, 2)
    schedule.step.add_(7)
    schedule.set_epoch(1)
    assert (int(schedule.epoch), int(schedule.step)) == (1, 0)
    schedule.step.add_(7)
    assert not schedule.epoch_is_over()
    assert (schedule.norms_are_live, schedule.observers_are_live) == (False, True)
    schedule.set_epoch(0)
    assert (schedule.norms_are_live, schedule.observers_are_live) == (True, True)


def test_ranges_are_settled_until_the_next_step():
    schedule = Schedule(1, 1)
    assert schedule.is_settled
    schedule.step.add_(2)
    assert not schedule.is_settled
    schedule.settle()
    assert schedule.is_settled
    schedule.step.add_(1)
    assert not schedule.is_settled
    schedule.next_epoch()
    assert schedule.is_settled


def test_the_average_of_two_states_is_known_by_its_seal_and_a_state_is_none():
    states = []
    for steps in (3, 5):
        schedule = Schedule(1, 1)
        for _ in range(steps):
            schedule.count()
        assert not schedule.is_average
        states.append(schedule.state_dict())
    for weight in (0.5, 0.9, 0.999):
        schedule = Schedule(1, 1)
        schedule.load_state_dict(
            {key: value * weight + states[1][key] * (1 - weight) for key, value in states[0].items()}
        )
        assert schedule.is_average
        schedule.settle()
        assert not schedule.is_average


def test_with_steps_per_epoch_train_does_not_begin_epochs():
    schedule = Schedule(1, 1, steps_per_epoch=5)
    schedule.step.add_(5)
    assert not schedule.epoch_is_over()


def test_freezing_by_hand_overrules_the_epochs_until_it_is_taken_back():
    schedule = Schedule(1, 2)
    schedule.freeze(True, None)
    assert run_epochs(schedule, 3) == [(False, True), (False, True), (False, False)]
    schedule.freeze(False, False)
    assert run_epochs(schedule, 2) == [(True, True), (True, True)]
    schedule.freeze(None, True)
    assert run_epochs(schedule, 2) == [(True, False), (True, False)]


def test_the_state_dict_holds_epoch_step_and_what_is_frozen():
    schedule = Schedule(3, 4)
    run_epochs(schedule, 3, steps=2)
    schedule.freeze(None, True)
    state = schedule.state_dict()
    values = {key: value.tolist() for key, value in state.items() if key != "seal"}
    assert values == {"epoch": 2, "step": 2, "settled": 0, "frozen": [-1, 1]}
    assert {value.dtype for value in state.values()} == {torch.int64}
    other = Schedule(3, 4)
    other.load_state_dict(state)
    assert run_epochs(other, 2) == [(False, False), (False, False)]
    assert int(other.epoch) == 4


@pytest.mark.parametrize("total", [0, -3, True, 2.0, "25"])
def test_total_epochs_that_make_no_sense_are_refused_by_name_and_value(total):
    with pytest.raises(SpecError, match=f"total_epochs must be an integer of at least 1, got {total!r}"):
        Schedule.for_training(total)


@pytest.mark.parametrize("value", [-1, True, 1.5, "1"])
@pytest.mark.parametrize("name", ["num_batch_norm_update_epochs", "num_observer_update_epochs", "steps_per_epoch"])
def test_other_numbers_that_make_no_sense_are_refused_by_name_and_value(name, value):
    arguments = {"num_batch_norm_update_epochs": 1, "num_observer_update_epochs": 1, "steps_per_epoch": None}
    with pytest.raises(SpecError, match=f"{name} must be an integer of at least [01], got {value!r}"):
        Schedule(*(arguments | {name: value}).values())


def test_an_epoch_of_no_steps_is_refused():
    with pytest.raises(SpecError, match="steps_per_epoch must be an integer of at least 1, got 0"):
        Schedule(1, 1, 0)


@pytest.mark.parametrize("epoch", [-1, True, 1.0])
def test_an_epoch_that_makes_no_sense_is_refused(epoch):
    with pytest.raises(SpecError, match=f"epoch must be an integer of at least 0, got {epoch!r}"):
        Schedule(1, 1).set_epoch(epoch)


def test_what_is_frozen_must_be_said_with_a_boolean():
    with pytest.raises(SpecError, match="True, False or None, got 'no'"):
        Schedule(1, 1).freeze("no", None)
