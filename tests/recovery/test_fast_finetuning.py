"""AdaQuant: weights, biases and scales are trained, and the float network stays what it is."""

import torch

from tests.recovery.learning import DATA, QUICK, calibrated, changed
from tests.states import snapshot

OPTIONS = QUICK["fast_finetuning"]


def test_the_users_weights_and_the_float_network_stay():
    model = calibrated()
    before = snapshot(model)
    with torch.no_grad():
        expected = model.module.run_float(DATA[0])
        model.recover(DATA, [("fast_finetuning", OPTIONS)])
        found = changed(before, snapshot(model))
        assert {"offset", "scale", "bias_shift"} <= found <= {"offset", "scale", "bias", "bias_shift"}
        assert torch.allclose(model.module.run_float(DATA[0]), expected, atol=1e-5)


def test_the_penalty_holds_the_weight_back():
    moved = []
    for penalty in (0.0, 1000.0):
        model = calibrated()
        model.recover(DATA, [("fast_finetuning", {**OPTIONS, "penalty": penalty, "scale_rate": 0.0})])
        offsets = [layer.weight_quantizer.offset for layer in model.module.quantized_layers()]
        moved.append(sum(int(offset.count_nonzero()) for offset in offsets if offset is not None))
    assert moved[1] < 0.5 * moved[0]


def test_it_refines_what_another_step_has_rounded():
    model = calibrated("attention")
    report = model.recover(DATA, [("adaround", QUICK["adaround"]), ("fast_finetuning", OPTIONS)])
    assert [step.kept for step in report.steps] == [True, True]
    with torch.no_grad():
        assert torch.equal(model(DATA[0]), model.convert()(DATA[0]))
