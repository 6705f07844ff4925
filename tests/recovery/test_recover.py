"""Steps in order, each judged on samples held out, undone if it does harm, and resumed where it was interrupted."""

import copy

import pytest
import torch
from torch.utils import _pytree as pytree

import edgeq
from edgeq.errors import CalibrationError, SpecError
from edgeq.recovery.recover import QUICK
from edgeq.recovery.registry import RECOVERY_STEPS
from tests.networks import batches, network
from tests.states import changed, snapshot

DATA = batches(8, seed=3)


def calibrated(preset="WC8_AT8", name="residual"):
    return edgeq.PTCFxModule(network(name), preset, bias_calibration_factor=0.0).calibrate(DATA)


@pytest.fixture
def registered():
    """Registers functions as steps for one test."""
    names = []

    def add(name, function):
        RECOVERY_STEPS.register(name)(function)
        names.append(name)

    yield add
    for name in names:
        del RECOVERY_STEPS._entries[name]


def test_a_step_that_helps_is_kept_and_its_gain_is_that_of_the_outputs_held_out():
    model = calibrated()
    float_model, held = network("residual").eval(), DATA[7]
    before = float_model(held)
    quality = [decibels(before, model(held))]
    report = model.recover(DATA, ["bias_calibration"])
    quality.append(decibels(before, model(held)))
    (step,) = report.steps
    assert step.kept
    assert (step.before, step.after) == pytest.approx(quality, abs=1e-4)
    assert step.gain == step.after - step.before > 0
    assert "bias_calibration" in str(report)


@torch.no_grad()
def decibels(expected, found):
    noise = (expected - found).double().square().sum()
    return float(10 * torch.log10(expected.double().square().sum() / noise))


def test_a_step_that_does_harm_is_undone_with_all_that_it_changed(registered):
    def harm(work):
        with torch.no_grad():
            for layer in work.network.quantized_layers():
                layer.weight.mul_(1.5)
                layer.weight_quantizer.keep_offset(layer.weight.shape).fill_(1)
            for tensor in work.network.quantizers():
                tensor.scale.mul_(3)
        return "all is worse"

    registered("harm", harm)
    model = calibrated()
    outputs, before = model(DATA[0]), snapshot(model)
    report = model.recover(DATA, ["harm"])
    assert not report.steps[0].kept
    assert "undone" in str(report)
    assert "all is worse" in str(report)
    assert torch.equal(model(DATA[0]), outputs)
    after = snapshot(model)
    assert changed(before, {key: value for key, value in after.items() if key in before}) == []
    assert all(not value.any() for key, value in after.items() if key not in before)
    assert torch.equal(model.convert()(DATA[0]), outputs)


def test_what_is_held_out_is_not_learned_from(registered):
    seen = []
    registered("look", lambda work: seen.extend(work.seen) or "")
    calibrated().recover(DATA, ["look"])
    learned = [call[0][0] for call in seen]
    assert len(learned) == 7
    assert not any(torch.equal(x, DATA[7]) for x in learned)


@pytest.mark.parametrize(("size", "seen", "held"), [(16, 14, 2), (3, 2, 1), (1, 1, 1)])
def test_of_a_single_batch_a_part_is_held_out(registered, size, seen, held):
    found = []
    registered("look", lambda work: found.append((work.seen, work.samples.held)) or "")
    calibrated().recover([torch.cat(DATA)[:size]], ["look"])
    counts = [sum(len(call[0][0]) for call in calls) for calls in found[0]]
    assert counts == [seen, held]


def test_samples_bound_what_is_taken_of_the_loader(registered):
    found = []
    registered("look", lambda work: found.append(work.seen + work.samples.held) or "")
    size = len(DATA[0])
    calibrated().recover((batch for batch in DATA), ["look"], samples=2 * size + 1)
    assert [len(call[0][0]) for call in found[0]] == [size, size, 1]


def test_the_result_is_the_same_each_time():
    models = [calibrated("WC4_AT8") for _ in range(2)]
    for model in models:
        model.recover(DATA, ["bias_calibration"], seed=1)
    assert changed(snapshot(models[0]), snapshot(models[1])) == []


class InterruptedRunError(Exception):
    """What a power cut is to a test."""


@pytest.mark.parametrize("interrupted_after", [0, 1, 2])
def test_an_interrupted_recovery_goes_on_where_it_was(registered, tmp_path, interrupted_after):
    left = [100]

    def units(work):
        layers = work.network.quantized_layers()[:3]
        for layer in work.units(layers, "units"):
            if left[0] == 0:
                raise InterruptedRunError
            left[0] -= 1
            noise = torch.rand(layer.weight.shape, generator=work.generator(layer.site.name))
            with torch.no_grad():
                layer.weight.add_(1e-4 * noise)
        return "units"

    registered("units", units)
    steps = ["bias_calibration", "units", "bias_calibration"]
    whole = calibrated()
    expected = whole.recover(DATA, steps)
    first, left[0] = calibrated(), interrupted_after
    with pytest.raises(InterruptedRunError):
        first.recover(DATA, steps, checkpoint=tmp_path / "recovery.pt")
    resumed, left[0] = calibrated(), 3 - interrupted_after
    report = resumed.recover(DATA, steps, checkpoint=tmp_path / "recovery.pt")
    assert changed(snapshot(whole), snapshot(resumed)) == []
    assert [(s.name, s.before, s.after, s.kept) for s in report.steps] == [
        (s.name, s.before, s.after, s.kept) for s in expected.steps
    ]
    again = calibrated()
    again.recover(DATA, steps, checkpoint=tmp_path / "recovery.pt")
    assert changed(snapshot(whole), snapshot(again)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["recovery.pt"]


def test_a_checkpoint_of_another_recovery_is_refused(tmp_path):
    calibrated().recover(DATA, ["bias_calibration"], checkpoint=tmp_path / "recovery.pt")
    with pytest.raises(SpecError, match=r"another recovery.*seed"):
        calibrated().recover(DATA, ["bias_calibration"], seed=1, checkpoint=tmp_path / "recovery.pt")


def test_offsets_that_a_step_adds_are_saved_loaded_copied_and_converted():
    model = edgeq.PTCFxModule(network("residual"), {"inherits": "WC4_AT8", "recovery": []}, bias_calibration_factor=0.0)
    model.calibrate(DATA)
    assert model.recover(DATA, ["compensated_rounding"]).steps[0].kept
    other = edgeq.PTCFxModule(network("residual"), {"inherits": "WC4_AT8", "recovery": []}).eval()
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model)):
        assert torch.equal(twin(DATA[0]), model(DATA[0]))
        assert torch.equal(twin.convert()(DATA[0]), model(DATA[0]))


ERRORS = {
    "unknown": (["bias_calibratoin"], {}, SpecError, "bias_calibration"),
    "option": ([("bias_calibration", {"facto": 1.0})], {}, SpecError, "facto"),
    "none": ([], {}, SpecError, "steps is empty"),
    "no list": ("adaround", {}, SpecError, r"write \['adaround'\]"),
    "no options": ([("adaround", None)], {}, SpecError, "a name or a table"),
    "no steps": ([("adaround", {"steps": 0})], {}, SpecError, "steps.steps must lie in"),
    "no batch": ([("brecq", {"batch": 0})], {}, SpecError, "steps.batch must lie in"),
    "drop": ([("qdrop", {"drop": 2.0})], {}, SpecError, "steps.drop must lie in 0.0..1.0"),
    "rate": ([("fast_finetuning", {"rate": -1.0})], {}, SpecError, "steps.rate must lie in"),
    "factor": ([("bias_calibration", {"factor": 7.0})], {}, SpecError, "steps.factor must lie in"),
    "alpha": ([("outlier_suppression", {"alpha": 3.0})], {}, SpecError, "steps.alpha must lie in"),
    "count": (["bias_calibration"], {"samples": 0}, SpecError, "samples must be"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_done_is_said_before_anything_is_changed(name):
    steps, options, error, message = ERRORS[name]
    model = calibrated()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        model.recover(DATA, steps, **options)
    assert changed(before, snapshot(model)) == []


def test_a_loader_without_batches_and_a_network_without_ranges_are_errors():
    with pytest.raises(CalibrationError, match="no batch"):
        calibrated().recover([], ["bias_calibration"])
    with pytest.raises(CalibrationError, match="no ranges yet"):
        edgeq.PTCFxModule(network("residual")).recover(DATA, ["bias_calibration"])


def test_all_leaves_of_the_outputs_count():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 400)

        def forward(self, x):
            return {"a": self.one(x), "b": [self.two(x)]}

    data = [torch.randn(32, 4) for _ in range(8)]
    model = edgeq.PTCFxModule(Two().eval(), bias_calibration_factor=0.0).calibrate(data)
    (step,) = model.recover(data, ["bias_calibration"]).steps
    expected, found = (
        torch.cat([leaf.flatten() for leaf in pytree.tree_leaves(m(data[7]))]) for m in (Two().eval(), model)
    )
    assert decibels(expected, found) == pytest.approx(max(step.before, step.after), abs=1e-3)


def test_when_nothing_is_said_the_steps_that_take_seconds_run_in_order():
    model = calibrated({"inherits": "DEFAULT", "weight": {"bits": 4}})
    before = model.recover(batches(8, seed=1)).steps
    assert tuple(step.name for step in before) == QUICK
    assert before[-1].after >= before[0].before + 1.0
