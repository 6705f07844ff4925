"""Training of detectors: it learns, and goes on bit for bit where it was interrupted."""

import copy
import dataclasses

import pytest
import torch

import edgeq
from recipes.detection.coco import read_coco
from recipes.detection.detectors import DETECTORS
from recipes.detection.errors import OptionError
from recipes.detection.shapes import write_shapes
from recipes.detection.training import Plan, share_of_rate, train

WIDTHS = {"yolo": 0.0625, "ssd": 0.125}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Twelve images of 64 pixels."""
    return read_coco(*write_shapes(tmp_path_factory.mktemp("shapes"), 12, 64, seed=0))


class PowerCutError(Exception):
    """The power went off."""


def interrupting(loss, steps):
    """The loss, until it was called so often."""
    count = 0

    def limited(*args):
        nonlocal count
        count += 1
        if count > steps:
            raise PowerCutError
        return loss(*args)

    return limited


def same(one, other):
    """Whether two checkpoints hold the same numbers."""
    ours, theirs = (torch.utils._pytree.tree_leaves(state) for state in (one, other))
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(ours, theirs, strict=True)
    )


def wrapped(model, kind, quantized):
    if not quantized:
        return model
    return edgeq.QATFxModule(model, "DEFAULT", "onnxruntime", total_epochs=3, **DETECTORS[kind].quantization(64))


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "quantized"])
@pytest.mark.parametrize("kind", WIDTHS)
def test_a_run_that_is_resumed_ends_in_the_numbers_of_one_that_was_not_interrupted(shapes, tmp_path, kind, quantized):
    torch.manual_seed(0)
    detector, plan = DETECTORS[kind], Plan(epochs=3, rate=1e-3, batch=4, size=64)
    model = detector.build(3, 64, WIDTHS[kind])
    first, second, anew = (wrapped(copy.deepcopy(model), kind, quantized) for _ in range(3))
    paths = tmp_path / "whole.pt", tmp_path / "resumed.pt"
    train(first, detector.loss, shapes, plan, paths[0], False, "")
    with pytest.raises(PowerCutError):  # in the second batch of the third epoch
        train(second, interrupting(detector.loss, 7), shapes, plan, paths[1], False, "")
    assert torch.load(paths[1])["epoch"] == 2
    torch.rand(5)  # whatever random numbers were drawn before
    train(anew, interrupting(detector.loss, 3), shapes, plan, paths[1], True, "")  # one epoch is left
    whole, resumed = (torch.load(path) for path in paths)
    assert same(whole, resumed)
    assert set(whole["module"]) >= set(model.state_dict())  # the float network's keys, and quantizers
    assert whole["optimizer"]["state"][0]["step"] == 9


def test_a_finished_run_is_only_loaded(shapes, tmp_path):
    torch.manual_seed(0)
    detector, plan = DETECTORS["yolo"], Plan(epochs=1, rate=1e-3, batch=4, size=64)
    models = [detector.build(3, 64, WIDTHS["yolo"]) for _ in range(2)]
    train(models[0], detector.loss, shapes, plan, tmp_path / "float.pt", False, "")
    train(models[1], interrupting(detector.loss, 0), shapes, plan, tmp_path / "float.pt", True, "")
    assert same(models[0].state_dict(), models[1].state_dict())
    assert not models[1].training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 2}, r"float\.pt was trained with epochs 1, this run has 2: give the same"),
        ({"network": "ssd --width 0.5"}, r"trained with network ssd --width 0\.125, this run has ssd --width 0\.5"),
    ],
)
def test_a_checkpoint_of_another_plan_is_refused(shapes, tmp_path, change, message):
    detector, path = DETECTORS["ssd"], tmp_path / "float.pt"
    model, plan = detector.build(3, 64, WIDTHS["ssd"]), Plan(1, 1e-3, 6, 64, network="ssd --width 0.125")
    train(model, detector.loss, shapes, plan, path, False, "")
    with pytest.raises(OptionError, match=message):
        train(model, detector.loss, shapes, dataclasses.replace(plan, **change), path, True, "")


def test_each_epoch_says_its_losses_and_a_resumed_run_where_it_goes_on(shapes, tmp_path, capsys):
    detector, path = DETECTORS["ssd"], tmp_path / "float.pt"
    model, plan, losses = detector.build(3, 64, WIDTHS["ssd"]), Plan(2, 1e-3, 4, 64), []

    def loss(*arguments):
        found = detector.loss(*arguments)
        losses.append(found["classification"].item())
        return found

    train(model, loss, shapes, plan, path, True, "float training")
    means = [f"{sum(epoch) / 3:.3f}" for epoch in (losses[:3], losses[3:])]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"float training: no {path} to go on with"
    for number, mean in enumerate(means, 1):
        assert lines[number].startswith(f"float training, epoch {number} of 2: bbox_regression ")
        assert lines[number].endswith(f"classification {mean}")
    train(model, loss, shapes, plan, path, True, "float training")
    assert capsys.readouterr().out == f"float training: {path} has 2 of 2 epochs\n"


def test_the_learning_rate_rises_and_falls():
    shares = [share_of_rate(progress) for progress in (0, 0.025, 0.05, 0.525, 1)]
    assert shares == pytest.approx([0.01 / 0.06, 0.035 / 0.06, 1, 0.505, 0.01])
