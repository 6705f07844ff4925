"""QDrop: codes and scales are learned while some of the activations stay real."""

import pytest
import torch

from edgeq.recovery.reconstruction import random_bytes
from tests.recovery.learning import DATA, QUICK, calibrated, changed
from tests.states import snapshot

COARSE = {
    "inherits": "WC8_AT8",
    "weight": {"bits": 2, "observer": "squared_error"},
    "activation": {"bits": 4},
}


@pytest.mark.parametrize("name", ["separable", "attention"])
def test_at_two_bits_most_of_the_error_goes(name):
    (step,) = calibrated(name, COARSE).recover(DATA, [("qdrop", {**QUICK["qdrop"], "steps": 100})]).steps
    assert step.gain > 4.0


def test_scales_inside_of_blocks_change_and_those_of_inputs_too():
    model = calibrated("separable")
    before = snapshot(model)
    model.recover(DATA, [("qdrop", QUICK["qdrop"])])
    assert changed(before, snapshot(model)) == {"offset", "scale"}
    scales = [key for key in before if key.endswith("scale") and ".tensors." in key]
    moved = [float((model.state_dict()[key] / before[key] - 1).abs()) for key in scales]
    assert sum(change > 0.002 for change in moved) >= len(scales) - 2
    assert max(moved) < 0.7


@pytest.mark.parametrize("drop", [0.25, 0.5])
def test_elements_are_drawn_evenly(drop):
    generator = torch.Generator().manual_seed(0)
    drawn = random_bytes(100_003, generator)
    assert drawn.shape == (100_003,)
    assert float((drawn < round(256 * drop)).double().mean()) == pytest.approx(drop, abs=0.005)
    assert len(drawn.unique()) == 256
    other = random_bytes(100_003, generator)
    assert float((drawn == other).double().mean()) < 0.01


def test_drop_decides():
    states = []
    for drop in (0.0, 0.5, 1.0):
        model = calibrated("separable")
        model.recover(DATA, [("qdrop", {**QUICK["qdrop"], "steps": 20, "drop": drop})])
        states.append(snapshot(model))
    assert changed(states[0], states[1])
    assert changed(states[1], states[2])
