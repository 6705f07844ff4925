"""What all steps that change weights, scales and biases without learning have in common."""

import copy

import pytest
import torch

from edgeq.recovery.registry import RECOVERY_STEPS
from tests.recovery.uneven import DATA, calibrated, uneven, work_on
from tests.states import changed, snapshot

STEPS = {
    "equalization": {},
    "bias_absorption": {},
    "bias_correction": {},
    "weight_clipping": {},
    "outlier_suppression": {"sigmas": 4.0},
}
PRESETS = ["WT8SYMP2_AT8SYMP2", "WC4_AT8"]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", STEPS)
def test_what_is_converted_equals_the_simulation_bit_for_bit(name, preset):
    for network in ("chain", "attention"):
        wrapped = calibrated(uneven(network), preset, bias_calibration_factor=1.0)
        RECOVERY_STEPS[name](work_on(wrapped), **STEPS[name])
        wrapped.eval()
        expected = wrapped(DATA[7])
        assert torch.isfinite(expected).all()
        assert torch.equal(wrapped.convert()(DATA[7]), expected)
        assert torch.equal(copy.deepcopy(wrapped)(DATA[7]), expected)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_is_undone_leaves_nothing_behind(name, monkeypatch):
    wrapped = calibrated(uneven("attention" if name == "outlier_suppression" else "chain"), "WC4_AT8")
    outputs, before = wrapped(DATA[7]), snapshot(wrapped)
    step = RECOVERY_STEPS[name]
    after = {}

    def harmful(work, **options):
        note = step(work, **options)
        after.update(snapshot(wrapped))
        for layer in work.network.quantized_layers():
            layer.weight.data *= 3
        return note

    monkeypatch.setitem(RECOVERY_STEPS._entries, name, harmful)
    monkeypatch.setattr(RECOVERY_STEPS, "options", lambda _: STEPS[name])
    report = wrapped.recover(DATA, [(name, STEPS[name])])
    assert not report.steps[0].kept
    if name != "bias_absorption":  # which finds nothing to absorb here
        assert any(not torch.equal(value, after[key]) for key, value in before.items())
    assert changed(before, snapshot(wrapped)) == []
    assert torch.equal(wrapped(DATA[7]), outputs)


def test_an_interrupted_recovery_goes_on_to_the_same_result(tmp_path, monkeypatch):
    steps = ["equalization", "weight_clipping", ("bias_correction", {"analytic": False})]
    whole = calibrated(uneven(), "WC4_AT8")
    whole.recover(DATA, steps)
    first = calibrated(uneven(), "WC4_AT8")
    with monkeypatch.context() as patch:
        patch.setitem(RECOVERY_STEPS._entries, "bias_correction", _power_cut)
        with pytest.raises(InterruptedError):
            first.recover(DATA, steps, checkpoint=tmp_path / "recovery.pt")
    resumed = calibrated(uneven(), "WC4_AT8")
    report = resumed.recover(DATA, steps, checkpoint=tmp_path / "recovery.pt")
    assert [step.name for step in report.steps] == ["equalization", "weight_clipping", "bias_correction"]
    assert changed(snapshot(whole), snapshot(resumed)) == []


def _power_cut(work, *, analytic=True):
    raise InterruptedError


def test_all_in_their_best_order_bring_an_uneven_network_back():
    wrapped = calibrated(uneven(powers=6.0), "WT8SYMP2_AT8SYMP2")
    steps = ["equalization", "bias_absorption", "weight_clipping", "bias_correction"]
    report = wrapped.recover(DATA, steps)
    first, last = report.steps[0], report.steps[-1]
    assert first.gain > 10
    assert max(last.before, last.after) > first.before + 15
