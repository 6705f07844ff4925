"""Scales of activations alone are learned."""

import torch
from torch import nn

import edgeq
from edgeq.graph.ties import avoid_ties
from tests.recovery.learning import DATA, QUICK, calibrated, changed
from tests.states import snapshot


def test_nothing_but_scales_changes_and_no_ties_are_left():
    model = calibrated("attention")
    before = snapshot(model)
    (step,) = model.recover(DATA, [("scale_learning", QUICK["scale_learning"])]).steps
    assert step.kept
    assert changed(before, snapshot(model)) == {"scale"}
    learned = snapshot(model)
    avoid_ties(model.module)
    assert not changed(learned, snapshot(model))
    weights = [key for key in learned if key.endswith("weight_quantizer.scale")]
    assert weights
    assert all(torch.equal(learned[key], before[key]) for key in weights)


def test_a_range_that_is_far_too_wide_is_narrowed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    preset = {"inherits": "WC8_AT8", "activation": {"bits": 4}}
    wide = [*DATA, 4 * DATA[0]]
    wrapped = edgeq.PTCFxModule(model, preset, bias_calibration_factor=0.0).calibrate(wide)
    quantizer = wrapped.module.quantized_layers()[0].site.target
    before = float(quantizer.scale)
    (step,) = wrapped.recover(DATA, [("scale_learning", {"steps": 100, "batch": 8, "scale_rate": 0.03})]).steps
    assert step.gain > 3.0
    assert float(quantizer.scale) < 0.7 * before
