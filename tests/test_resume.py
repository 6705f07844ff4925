"""A run resumed from a checkpoint, in another process, equals the uninterrupted run bit for bit."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edgeq
from tests.networks import batches, network
from tests.states import changed, snapshot, train_step

DATA = batches(2)
TOTAL = 5  # batch norms live in epoch 0, observers in epochs 0 to 2


def training(name, **options):
    torch.manual_seed(11)
    wrapped = edgeq.QATFxModule(network(name).train(), total_epochs=TOTAL, **options)
    return wrapped, torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9)


def run_epoch(wrapped, optimizer, epoch, evaluate):
    torch.manual_seed(epoch)  # dropout; a loop that resumes must resume its random numbers itself
    wrapped.train()
    for batch in DATA:
        train_step(wrapped, optimizer, batch)
    if evaluate:
        wrapped.eval()
        wrapped(DATA[0])


def checkpoint(wrapped, optimizer):
    return {"model": snapshot(wrapped), "optimizer": copy.deepcopy(optimizer.state_dict())}


def resumed(path, name, evaluate, options):
    """What another process makes of a checkpoint that it is given: all further epochs."""
    state = torch.load(path, weights_only=True)
    wrapped, optimizer = training(name, **options)
    wrapped.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for epoch in range(int(wrapped.module.schedule.epoch) + 1, TOTAL):
        run_epoch(wrapped, optimizer, epoch, evaluate)
    return checkpoint(wrapped.eval(), optimizer)


CASES = {  # network, whether each epoch ends with an evaluation, options
    "residual, evaluated": ("residual", True, {}),
    "separable": ("separable", False, {}),
    "attention": ("attention", False, {}),
    "residual, biases calibrated": ("residual", True, {"bias_calibration_factor": 0.5}),
    "residual, norms frozen": ("residual", False, {"num_batch_norm_update_epochs": 0}),
    "separable, power of two": ("separable", False, {"qconfig_type": "WC8P2_AT8P2"}),
}

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from tests.test_resume import CASES, resumed
for case, arguments in CASES.items():
    for epoch in range(1, 5):
        path = f"{sys.argv[1]}/{case} {epoch}.pth"
        torch.save(resumed(path, *arguments), path + ".resumed")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of every epoch of every case, and what a new process has made of each of them."""
    folder = tmp_path_factory.mktemp("resume")
    for case, (name, evaluate, options) in CASES.items():
        wrapped, optimizer = training(name, **options)
        for epoch in range(TOTAL):
            run_epoch(wrapped, optimizer, epoch, evaluate)
            torch.save(checkpoint(wrapped, optimizer), folder / f"{case} {epoch + 1}.pth")
        torch.save(checkpoint(wrapped.eval(), optimizer), folder / f"{case}.pth")
    root = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], check=True, cwd=root, env=environment)
    return folder


@pytest.mark.parametrize("epoch", range(1, TOTAL))
@pytest.mark.parametrize("case", CASES)
def test_a_training_resumes_in_a_new_process_after_any_epoch(case, epoch, folder):
    expected = torch.load(folder / f"{case}.pth", weights_only=True)
    result = torch.load(folder / f"{case} {epoch}.pth.resumed", weights_only=True)
    assert changed(expected["model"], result["model"]) == []
    for index, state in expected["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], result["optimizer"]["state"][index]["momentum_buffer"])


@pytest.mark.parametrize("interrupted", range(1, 9))
def test_with_steps_per_epoch_a_training_resumes_after_any_step(interrupted):
    wrapped, optimizer = training("separable", steps_per_epoch=3)
    wrapped.train()
    for step in range(interrupted):
        train_step(wrapped, optimizer, DATA[step % 2])
    again, its_optimizer = training("separable", steps_per_epoch=3)
    again.load_state_dict(snapshot(wrapped))
    its_optimizer.load_state_dict(checkpoint(wrapped, optimizer)["optimizer"])
    again.train()
    for step in range(interrupted, 12):
        train_step(wrapped, optimizer, DATA[step % 2])
        train_step(again, its_optimizer, DATA[step % 2])
    assert int(again.module.schedule.epoch) == 3
    assert changed(snapshot(wrapped), again) == []


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_calibration_resumes_after_any_epoch(epochs):
    whole, part, resumed_one = (edgeq.PTCFxModule(network("residual"), num_observer_update_epochs=2) for _ in range(3))
    whole.calibrate(DATA, 3)
    part.calibrate(DATA, epochs)
    resumed_one.load_state_dict(snapshot(part))
    resumed_one.calibrate(DATA, 3 - epochs)
    assert changed(snapshot(whole), resumed_one) == []


def test_what_was_frozen_by_hand_is_frozen_after_resuming():
    wrapped, optimizer = training("residual")
    run_epoch(wrapped, optimizer, 0, False)
    wrapped.freeze()
    again, _ = training("residual")
    again.load_state_dict(snapshot(wrapped))
    before = snapshot(again)
    with torch.no_grad():
        again.train()
        again(DATA[0])
    counters = ("epoch", "seal", "settled", "step")
    assert changed(before, again) == [f"module.quantization.schedule.{key}" for key in counters]


@pytest.mark.parametrize("mode", [True, False])
def test_a_checkpoint_takes_the_place_of_whatever_was_there(mode):
    wrapped, optimizer = training("residual")
    run_epoch(wrapped, optimizer, 0, True)
    expected = wrapped(DATA[0])
    other = edgeq.QATFxModule(network("residual", 9).train(), total_epochs=TOTAL)
    other(10 * DATA[1])
    other.train(mode)
    other.load_state_dict(snapshot(wrapped))
    assert other.training is mode
    assert torch.equal(other.eval()(DATA[0]), expected)
    assert changed(snapshot(wrapped), other) == []
