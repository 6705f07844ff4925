"""A recovery that is interrupted leaves nothing half done, and goes on in the same network or in another one."""

import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import SpecError
from edgeq.recovery import settling
from tests.networks import batches, network
from tests.recovery.learning import DATA, QUICK, calibrated
from tests.states import changed, snapshot

STEPS = ["bias_calibration", ("adaround", {**QUICK["adaround"], "steps": 10})]


@pytest.fixture
def interrupted(monkeypatch):
    """Lets the user lose patience when the second unit has just been settled."""

    def interrupt(recover):
        settle, count = settling.Settled.__init__, []

        def settle_twice(self, unit):
            settle(self, unit)
            count.append(unit)
            if len(count) == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(settling.Settled, "__init__", settle_twice)
            with pytest.raises(KeyboardInterrupt):
                recover()

    return interrupt


def test_what_is_interrupted_or_raises_is_undone(interrupted):
    model = calibrated()
    before, outputs = snapshot(model), model(DATA[0])
    interrupted(lambda: model.recover(DATA, STEPS[1:]))
    after = snapshot(model)
    assert all(torch.equal(after.pop(key), value) for key, value in before.items())
    assert after  # offsets
    assert not any(value.any() for value in after.values())
    assert torch.equal(model(DATA[0]), outputs)
    assert torch.equal(model.convert()(DATA[0]), outputs)


def test_the_same_network_goes_on_where_it_was_interrupted(interrupted, tmp_path):
    whole, model = calibrated(), calibrated()
    whole.recover(DATA, STEPS)
    interrupted(lambda: model.recover(DATA, STEPS, checkpoint=tmp_path / "recovery.pt"))
    model.recover(DATA, STEPS, checkpoint=tmp_path / "recovery.pt")
    assert changed(snapshot(whole), snapshot(model)) == []


@pytest.mark.parametrize("other", [{"seed": 1}, {"preset": "WC8_AT8"}])
def test_a_checkpoint_of_another_network_does_not_take_its_place(tmp_path, other):
    calibrated().recover(DATA, STEPS[:1], checkpoint=tmp_path / "recovery.pt")
    model = calibrated(**other)
    before = snapshot(model)
    with pytest.raises(SpecError, match="of another network, or of other samples"):
        model.recover(DATA, STEPS[:1], checkpoint=tmp_path / "recovery.pt")
    assert changed(before, snapshot(model)) == []


def test_a_checkpoint_in_no_folder_is_refused_before_the_work(tmp_path):
    with pytest.raises(SpecError, match="does not exist"):
        calibrated().recover(DATA, STEPS, checkpoint=tmp_path / "none" / "recovery.pt")


def test_a_state_of_before_the_recovery_brings_the_network_back():
    model = calibrated(preset={"inherits": "WC4_AT8", "recovery": []})
    before, outputs = snapshot(model), model(DATA[0])
    assert model.recover(DATA, ["compensated_rounding"]).steps[0].kept
    model.load_state_dict(before)
    assert torch.equal(model(DATA[0]), outputs)


def test_after_a_recovery_in_the_middle_of_a_training_the_whole_model_evaluates():
    model = edgeq.QATFxModule(network("residual"), total_epochs=4).train()
    data = batches(3)
    for batch in data:
        model(batch).sum().backward()
    assert model.training
    model.recover(data, ["bias_calibration"])
    assert not model.training
    assert not any(module.training for module in model.modules())


class WithExtraState(nn.Module):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass

    def forward(self, x):
        return x * 2


@pytest.mark.parametrize("step", ["bias_calibration", "equalization"])
def test_state_that_is_no_tensor_is_left_alone(step):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), WithExtraState()).eval()
    model = edgeq.PTCFxModule(model, untraced=["3"], bias_calibration_factor=0.0).calibrate(DATA)
    model.recover(DATA, [step])
    assert model.state_dict()["module.3._extra_state"] == {"version": 1}
