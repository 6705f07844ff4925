"""BRECQ: the layers of a block learn together."""

import torch

from edgeq.recovery.learning_unit import LearningUnit
from edgeq.recovery.unit_samples import samples_of
from edgeq.recovery.units import block_units
from tests.recovery.learning import DATA, QUICK, calibrated, changed
from tests.states import snapshot

CALL = ((torch.cat(DATA[:8]),), {})


def test_what_one_layer_spoils_the_next_one_makes_good():
    """A block's error is less than that of its layers learned one by one, each for its own output."""
    preset = {"inherits": "WC8_AT8", "weight": {"bits": 2, "observer": "squared_error"}}
    errors = {}
    for step in ("adaround", "brecq"):
        model = calibrated("separable", preset)
        model.recover(DATA, [(step, {**QUICK[step], "steps": 100})])
        network = model.module
        unit = block_units(network, CALL)[1]
        (sample,) = samples_of(network, unit, [CALL], with_real=False)
        with torch.no_grad():
            (found,) = LearningUnit(network, unit, until_quantized=False).outputs(sample.quantized)
        errors[step] = float((found - sample.outputs[0]).square().sum() / sample.outputs[0].square().sum())
    assert errors["brecq"] < 0.9 * errors["adaround"]


def test_only_codes_change():
    model = calibrated("separable")
    before = snapshot(model)
    model.recover(DATA, [("brecq", QUICK["brecq"])])
    assert changed(before, snapshot(model)) == {"offset"}
    offsets = [layer.weight_quantizer.offset for layer in model.module.quantized_layers()]
    assert max(int(offset.abs().max()) for offset in offsets if offset is not None) == 1
