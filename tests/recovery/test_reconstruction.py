"""What holds of all steps that learn unit by unit."""

import logging
import re

import pytest
import torch

import edgeq
from edgeq.recovery import reconstruction
from edgeq.recovery.units import block_units, layer_units
from tests.networks import NETWORKS
from tests.recovery.learning import DATA, FOUR_BITS, QUICK, calibrated, changed
from tests.states import snapshot

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
    before = snapshot(model)
    with caplog.at_level(logging.INFO, "edgeq.recovery.reconstruction"):
        report = model.recover(DATA, [(step, QUICK[step])])
    errors = [tuple(map(float, re.findall(r"[\d.e-]+(?= ->|$)", record.message))) for record in caplog.records]
    errors = [pair for pair in errors if len(pair) == 2]
    fell = [after < before for before, after in errors]
    assert sum(fell) >= len(fell) / 2 > 0
    assert report.steps[0].kept, str(report)
    assert report.steps[0].gain > 0.2
    assert changed(before, snapshot(model)) <= STEPS[step]
    with torch.no_grad():
        assert torch.equal(model(DATA[0]), model.convert()(DATA[0]))


@pytest.mark.parametrize("step", STEPS)
def test_the_same_seed_gives_the_same_result_and_another_one_another(step):
    states = []
    for seed in (1, 1, 2):
        model = calibrated("separable")
        model.recover(DATA, [(step, {**QUICK[step], "steps": 10})], seed=seed)
        states.append(snapshot(model))
    assert not changed(states[0], states[1])
    assert changed(states[0], states[2])


class InterruptedRunError(Exception):
    """What a power cut is to a test."""


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_step_goes_on_where_it_was(step, tmp_path, monkeypatch):
    options = {**QUICK[step], "steps": 5}
    whole = calibrated("separable")
    expected = whole.recover(DATA, [(step, options)])
    run, left = reconstruction._Learner.run, [2]

    def interrupted(learner):
        if left[0] == 0:
            raise InterruptedRunError
        left[0] -= 1
        return run(learner)

    monkeypatch.setattr(reconstruction._Learner, "run", interrupted)
    with pytest.raises(InterruptedRunError):
        calibrated("separable").recover(DATA, [(step, options)], checkpoint=tmp_path / "recovery.pt")
    left[0] = 100
    resumed = calibrated("separable")
    report = resumed.recover(DATA, [(step, options)], checkpoint=tmp_path / "recovery.pt")
    assert not changed(snapshot(whole), snapshot(resumed))
    assert left[0] == 100 - (5 if step in ("adaround", "fast_finetuning") else 3) + 2  # the first two units were done
    assert [(s.before, s.after) for s in report.steps] == [(s.before, s.after) for s in expected.steps]


def test_a_unit_whose_error_does_not_fall_stays_as_it_was():
    model = calibrated("separable")
    before = snapshot(model)
    model.recover(DATA, [("adaround", {"steps": 3, "batch": 8, "rate": 50.0})])  # wild steps
    after = snapshot(model)
    assert all(not value.any() for key, value in after.items() if key not in before)


def test_scales_of_a_group_that_reaches_beyond_the_unit_stay():
    class Joined(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.one, self.two = (torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            self.last = torch.nn.Conv2d(6, 4, 3)

        def forward(self, x):
            x = self.stem(x)
            return self.last(torch.cat([self.one(x).relu(), self.two(x).relu()], 1))

    model = edgeq.PTCFxModule(Joined().eval(), FOUR_BITS).calibrate(DATA)
    network = model.module
    layers = {layer.site.name: layer for layer in network.quantized_layers()}
    shared = layers["one"].site.target
    assert shared is layers["two"].site.target
    call = ((DATA[0],), {})
    for unit in layer_units(network, call):
        assert shared not in reconstruction._quantized_within(network, unit)
    inside = [shared in reconstruction._quantized_within(network, unit) for unit in block_units(network, call)]
    assert inside.count(True) == 1


@pytest.mark.parametrize("preset", ["WT8SYMP2_AT8SYMP2", "WC8SYMP2_AT8SYMP2R4"])
def test_scales_that_may_not_be_any_number_stay(preset):
    model = calibrated(preset={"inherits": preset, "recovery": []})
    scales = [tensor.scale.clone() for tensor in model.module.quantizers()]
    weights = [layer.weight_quantizer.scale.clone() for layer in model.module.quantized_layers()]
    for step in ("fast_finetuning", "scale_learning"):
        model.recover(DATA, [(step, {**QUICK[step], "steps": 10})])
    assert all(map(torch.equal, scales, (tensor.scale for tensor in model.module.quantizers())))
    found = [layer.weight_quantizer.scale for layer in model.module.quantized_layers()]
    assert all(map(torch.equal, weights, found))


def test_small_batches_are_put_together():
    singles = [x for batch in DATA[:5] for x in batch.split(1)]
    model = calibrated("separable")
    assert model.recover(singles, [("adaround", QUICK["adaround"])]).steps[0].gain > 0.2


def test_gradients_and_modes_are_as_before():
    model = calibrated()
    for step in STEPS:
        model.recover(DATA[:3], [(step, {**QUICK[step], "steps": 2})])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.module.modules())
