"""What a wrapper takes for an epoch, seen by what its observers and batch norms do."""

import pytest
import torch

import edgeq
from tests.networks import batches, network
from tests.states import changed, snapshot

DATA = batches(2)


def counts(wrapped):
    """Batches that the input's observer saw; batches that batch norms took statistics of."""
    module = wrapped.module
    return int(module.quantization.tensors.x.observer.batches), int(module.bn1.num_batches_tracked)


def training(total, **options):
    wrapped = edgeq.QATFxModule(network("residual"), total_epochs=total, **options)
    wrapped.module.bn1.num_batches_tracked.zero_()
    return wrapped


def run_epoch(wrapped):
    wrapped.train()
    for batch in DATA:
        wrapped(batch)


def epoch_of(wrapped):
    return int(wrapped.module.schedule.epoch)


@pytest.mark.parametrize(("total", "norms", "observers"), [(1, 1, 1), (2, 1, 2), (3, 1, 2), (10, 4, 6), (25, 11, 13)])
@pytest.mark.parametrize("validate", [True, False])
def test_training_observes_and_updates_for_the_default_numbers_of_epochs(total, norms, observers, validate):
    wrapped = training(total)
    for epoch in range(total):
        run_epoch(wrapped)
        assert epoch_of(wrapped) == epoch
        assert counts(wrapped) == (2 * min(observers, epoch + 1), 2 * min(norms, epoch + 1))
        if validate:
            wrapped.eval()
            wrapped(DATA[0])
    assert epoch_of(wrapped) == total - 1


def test_calibration_observes_for_one_epoch_and_updates_no_batch_norm_by_default():
    wrapped = edgeq.PTCFxModule(network("residual"))
    tracked = counts(wrapped)[1]
    for _ in range(3):
        run_epoch(wrapped)
    assert counts(wrapped) == (2, tracked)


@pytest.mark.parametrize(("norms", "observers"), [(0, 1), (2, 1), (1, 3), (0, 2)])
def test_calibration_observes_and_updates_for_the_numbers_of_epochs_that_are_given(norms, observers):
    wrapped = edgeq.PTCFxModule(
        network("residual"), num_batch_norm_update_epochs=norms, num_observer_update_epochs=observers
    )
    tracked = counts(wrapped)[1]
    for _ in range(4):
        run_epoch(wrapped)
    assert counts(wrapped) == (2 * observers, tracked + 2 * norms)


def test_explicit_zeros_mean_that_nothing_is_observed_and_nothing_updated():
    wrapped = training(4, num_batch_norm_update_epochs=0, num_observer_update_epochs=0)
    before = snapshot(wrapped)
    run_epoch(wrapped)
    assert counts(wrapped) == (0, 0)
    assert changed(before, wrapped) == [f"module.quantization.schedule.{key}" for key in ("seal", "step")]
    with pytest.raises(edgeq.CalibrationError, match="no ranges yet"):
        wrapped.convert()


def test_train_without_a_forward_in_between_counts_for_nothing():
    wrapped = training(3)
    for _ in range(3):
        wrapped.train().train(True)
    wrapped.eval().train()
    assert epoch_of(wrapped) == 0
    run_epoch(wrapped)
    wrapped.train().train()
    assert epoch_of(wrapped) == 1
    wrapped.eval().train().eval()
    assert epoch_of(wrapped) == 1


def test_evaluations_count_for_nothing():
    wrapped = training(3)
    run_epoch(wrapped)
    wrapped.eval()
    for batch in DATA:
        wrapped(batch)
    wrapped.eval()
    assert (epoch_of(wrapped), int(wrapped.module.schedule.step)) == (0, 2)
    wrapped.train()
    assert (epoch_of(wrapped), int(wrapped.module.schedule.step)) == (1, 0)


def test_forwards_without_gradients_count_as_any_other():
    wrapped = training(3)
    wrapped.train()
    with torch.no_grad():
        wrapped(DATA[0])
    assert counts(wrapped) == (1, 1)
    wrapped.train()
    assert epoch_of(wrapped) == 1


@pytest.mark.parametrize("wrap", [lambda: training(3), lambda: edgeq.PTCFxModule(network("residual"))])
def test_modes_set_on_the_module_count_like_modes_set_on_the_wrapper(wrap):
    by_wrapper, by_module = wrap(), wrap()
    torch.manual_seed(0)
    for _ in range(2):
        run_epoch(by_wrapper)
        by_wrapper.eval()
    torch.manual_seed(0)
    for _ in range(2):
        by_module.module.train()
        for batch in DATA:
            by_module(batch)
        by_module.module.eval()
    assert changed(snapshot(by_wrapper), by_module) == []
    assert torch.equal(by_wrapper(DATA[0]), by_module(DATA[0]))
    assert not any(module.training for module in by_module.module.modules())


def test_with_set_epoch_a_trainer_may_change_modes_within_an_epoch():
    wrapped = training(3)
    for epoch in range(3):
        wrapped.set_epoch(epoch)
        for batch in DATA:
            wrapped.train()
            wrapped(batch)
            wrapped.eval()
            wrapped(batch)
        assert epoch_of(wrapped) == epoch
        assert counts(wrapped) == (2 * min(2, epoch + 1), 2)


def test_set_epoch_before_or_after_train_is_the_same():
    before, after = training(3), training(3)
    for epoch in range(3):
        before.set_epoch(epoch)
        before.train()
        after.train()
        after.set_epoch(epoch)
        for wrapped in (before, after):
            torch.manual_seed(epoch)
            wrapped(DATA[0])
    assert changed(snapshot(before), after) == []
    assert counts(before) == (2, 1)


def test_with_steps_per_epoch_only_steps_count():
    wrapped = training(3, steps_per_epoch=3)
    seen = []
    for step in range(9):
        wrapped.train()
        wrapped(DATA[step % 2])
        wrapped.eval()
        seen.append((epoch_of(wrapped), *counts(wrapped)))
    assert [epoch for epoch, _, _ in seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert seen[-1][1:] == (6, 3)


def test_freeze_and_unfreeze_overrule_the_epochs_from_the_next_batch_on():
    wrapped = training(2)
    run_epoch(wrapped)
    wrapped.freeze()
    wrapped(DATA[0])
    assert counts(wrapped) == (2, 2)
    wrapped.freeze(freeze_bn=False, freeze_observers=None)
    wrapped(DATA[0])
    assert counts(wrapped) == (2, 3)
    wrapped.freeze(None, False)
    wrapped(DATA[0])
    assert counts(wrapped) == (3, 4)
    for _ in range(4):  # far beyond the epochs of the schedule
        wrapped.unfreeze()
        run_epoch(wrapped)
    assert counts(wrapped) == (11, 12)


def test_frozen_training_still_trains():
    wrapped = training(2)
    run_epoch(wrapped)
    wrapped.freeze()
    before = snapshot(wrapped)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    wrapped(DATA[0]).square().mean().backward()
    optimizer.step()
    parameters = [key for key, _ in wrapped.named_parameters()]
    counters = [f"module.quantization.schedule.{key}" for key in ("seal", "step")]
    assert changed(before, wrapped) == sorted([*parameters, *counters])


def test_a_batch_norm_set_to_eval_by_hand_stands_still():
    wrapped = training(4)
    wrapped.train()
    wrapped.module.bn1.eval()
    before = snapshot(wrapped.module.bn1)
    wrapped(DATA[0]).square().mean().backward()
    assert changed(before, wrapped.module.bn1) == []
    assert int(wrapped.module.bn2.num_batches_tracked) == int(network("residual").bn2.num_batches_tracked) + 1
    assert float(wrapped.module.bn1.weight.grad.abs().min()) > 0
