"""What holds of all steps that learn unit by unit."""

import logging
import re

import pytest
import torch

from tests.networks import NETWORKS
from tests.recovery.learning import DATA, QUICK, calibrated, changed, state

STEPS = {
    "adaround": {"offset"},
    "brecq": {"offset"},
    "qdrop": {"offset", "scale"},
    "scale_learning": {"scale"},
    "fast_finetuning": {"offset", "scale", "bias", "bias_shift"},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("step", STEPS)
def test_errors_fall_and_what_is_converted_is_what_was_simulated(step, name, caplog):
    model = calibrated(name)
    before = state(model)
    with caplog.at_level(logging.INFO, "edgeq.recovery.reconstruction"):
        report = model.recover(DATA, [(step, QUICK[step])])
    errors = [tuple(map(float, re.findall(r"[\d.e-]+(?= ->|$)", record.message))) for record in caplog.records]
    errors = [pair for pair in errors if len(pair) == 2]
    fell = [after < before for before, after in errors]
    assert sum(fell) >= len(fell) / 2 > 0
    assert report.steps[0].kept, str(report)
    assert report.steps[0].gain > 0.2
    assert changed(before, state(model)) <= STEPS[step]
    with torch.no_grad():
        assert torch.equal(model(DATA[0]), model.convert()(DATA[0]))


@pytest.mark.parametrize("step", STEPS)
def test_the_same_seed_gives_the_same_result_and_another_one_another(step):
    states = []
    for seed in (1, 1, 2):
        model = calibrated("separable")
        model.recover(DATA, [(step, {**QUICK[step], "steps": 10})], seed=seed)
        states.append(state(model))
    assert not changed(states[0], states[1])
    assert changed(states[0], states[2])
