"""Networks of which parts are quantized: numbers, keys, parameters, modes and the count of epochs."""

import pytest
import torch
from torch import nn

import edgeq
from tests.graph.parted import PARTS, Detector, calibrated, counted, data, detector, train, training
from tests.states import changed, snapshot


def modes(wrapped, *paths):
    """Whether the modules at the paths, in the user's own object, are in training."""
    return [wrapped.module.face.get_submodule(path).training for path in paths]


def test_the_simulation_is_near_the_float_network_and_the_integer_network_is_the_simulation():
    wrapped = calibrated()
    with torch.no_grad():
        for batch in data(3, seed=5):
            found, expected = wrapped(batch), detector()(batch)
            assert 0 < (found - expected).norm() < 0.03 * expected.norm()
            assert torch.equal(wrapped.convert()(batch), found)


def test_the_float_keys_stay_and_a_float_checkpoint_loads():
    model = detector()
    wrapped = edgeq.PTCFxModule(model, submodules=PARTS)
    state = wrapped.module.state_dict()
    assert {key: value.shape for key, value in model.state_dict().items()}.items() <= {
        key: value.shape for key, value in state.items()
    }.items()
    assert all(".quantization." in key or "weight_quantizer" in key or key.endswith("bias_shift")
               for key in state.keys() - model.state_dict().keys())  # fmt: skip
    report = wrapped.load_weights(detector(seed=9).state_dict())
    assert sorted(report.loaded) == sorted(model.state_dict())
    assert (report.unexpected, report.mismatched) == ([], [])
    assert torch.equal(wrapped.module.run_float(data()[0]), detector(seed=9)(data()[0]))


def test_the_parameters_are_the_users_own_and_an_optimizer_from_before_trains_them():
    model = detector().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = snapshot(model)
    wrapped = edgeq.QATFxModule(model, submodules=PARTS, total_epochs=4)
    own = dict(model.named_parameters())
    assert {name: id(parameter) for name, parameter in wrapped.module.named_parameters()} == {
        name: id(parameter) for name, parameter in own.items()
    }
    wrapped.train()(data()[0])["loss"].backward()
    optimizer.step()
    assert {*changed(before, model)} >= {*own}


def test_the_float_network_stays_as_it_is():
    model = detector().train()
    before, attributes = snapshot(model), {path: {*vars(module)} for path, module in model.named_modules()}
    wrapped = edgeq.PTCFxModule(model, submodules=PARTS, bias_calibration_factor=0).calibrate(data())
    wrapped.convert()
    assert all(module.training for module in model.modules())
    assert {path: {*vars(module)} for path, module in model.named_modules()} == attributes
    assert changed(before, model) == []
    assert {type(module).__module__.split(".")[0] for module in model.modules()} == {"torch", "tests"}


# ---- modes


def test_in_training_the_rest_trains_and_gives_its_loss_and_in_evaluation_nothing_changes():
    wrapped = training()
    wrapped.train()
    assert modes(wrapped, "", "entry", "norm", "drop") == [True] * 4
    assert wrapped.module.backbone.training is True
    assert wrapped.module.head.mode() is True  # what a method of a part sees
    before = snapshot(wrapped)
    assert set(wrapped(data()[0])) == {"loss"}
    assert {"module.norm.running_mean", "module.backbone.stem.norm.running_mean"} <= {*changed(before, wrapped)}
    wrapped.eval()
    assert modes(wrapped, "", "entry", "norm", "drop") == [False] * 4
    assert wrapped.module.head.mode() is False
    before = snapshot(wrapped)
    outputs = [wrapped(data()[0]) for _ in range(2)]
    assert torch.equal(*outputs)  # no dropout
    assert changed(before, wrapped) == []


def test_in_calibration_nothing_trains_and_dropouts_and_losses_are_those_of_an_evaluation():
    model = detector().train()
    wrapped = edgeq.PTCFxModule(model, submodules=PARTS, bias_calibration_factor=0).train()
    assert modes(wrapped, "", "entry", "norm", "drop") == [False] * 4
    assert (wrapped.training, wrapped.module.training, wrapped.module.head.mode()) == (True, True, False)
    before = snapshot(wrapped)
    output = wrapped(data()[0])
    assert (output.shape, output.requires_grad) == (detector()(data()[0]).shape, False)
    torch.testing.assert_close(output, detector()(data()[0]), rtol=1e-4, atol=1e-5)  # while it is observed
    assert all(".quantization." in key or "weight_quantizer" in key for key in changed(before, wrapped))


def test_batch_norms_outside_of_parts_follow_the_schedule_as_those_inside_do():
    wrapped = training(num_batch_norm_update_epochs=1)
    moving = []
    for _ in range(2):
        before = snapshot(wrapped)
        train(wrapped)
        keys = {*changed(before, wrapped)}
        moving.append(["module.norm.running_mean" in keys, "module.head.hidden.norm.running_mean" in keys])
        assert "module.norm.weight" in keys
    assert moving == [[True, True], [False, False]]
    wrapped.unfreeze()
    assert modes(wrapped, "norm", "drop") == [True, True]
    wrapped.freeze()
    assert modes(wrapped, "norm", "drop") == [False, True]


def test_batch_norms_move_in_a_calibration_that_asks_for_it_and_only_then():
    wrapped = edgeq.PTCFxModule(
        detector(), submodules=PARTS, num_batch_norm_update_epochs=1, num_observer_update_epochs=2
    )
    before = snapshot(wrapped)
    wrapped.calibrate(data(), epochs=1)
    after = snapshot(wrapped)
    assert "module.norm.running_mean" in changed(before, after)
    wrapped.calibrate(data(), epochs=1)
    assert "module.norm.running_mean" not in changed(after, wrapped)


def test_a_mode_given_to_the_module_or_to_the_wrapper_is_the_same():
    one, other = training(), training()
    for wrapped, switch in ((one, one), (other, other.module)):
        switch.train()
        torch.manual_seed(0)
        wrapped(data()[0])["loss"].backward()
        switch.eval()
    assert changed(snapshot(one), other) == []
    assert counted(one) == counted(other)


# ---- epochs and steps


@pytest.mark.parametrize("kind", ["submodules", "standalone"])
def test_a_forward_of_the_whole_is_one_step_however_often_a_part_is_called(kind):
    options = {kind: PARTS} if kind == "submodules" else {kind: ["head"], "kind": Standing}
    wrapped = training(**options)
    for _ in range(3):
        wrapped(data()[0])
    assert counted(wrapped) == [(0, 3)] * len(counted(wrapped))
    wrapped.eval()
    assert {epoch for epoch, _ in counted(wrapped)} == {0}
    for _ in range(2):
        wrapped.train()
        assert {*counted(wrapped)} == {(1, 0)}


class Standing(Detector):
    """Without a decision by value, so that it can be captured whole."""

    def forward(self, x):
        return self.scores(x)

    def scores(self, x):
        maps = self.backbone(self.drop(self.norm(self.entry(x))))
        return torch.cat([self.head(maps["fine"]).flatten(2), self.head(maps["coarse"]).flatten(2)], 2)


@pytest.mark.parametrize("kind", ["submodules", "standalone"])
def test_epochs_by_steps_are_those_of_the_whole(kind):
    options = {kind: PARTS} if kind == "submodules" else {kind: ["head"], "kind": Standing}
    wrapped = training(steps_per_epoch=2, num_batch_norm_update_epochs=1, num_observer_update_epochs=2, **options)
    found, norms = [], []
    for _ in range(5):
        wrapped(data()[0])
        found.append(counted(wrapped))
        norm = wrapped.module.get_submodule("norm") if kind == "standalone" else wrapped.module.face.norm
        norms.append(norm.training)
    assert [{*step} for step in found] == [{(0, 1)}, {(0, 2)}, {(1, 1)}, {(1, 2)}, {(2, 1)}]
    assert norms == [True, True, False, False, False]


def test_a_part_that_is_called_by_itself_counts_by_itself():
    wrapped = edgeq.PTCFxModule(detector(), submodules=PARTS, bias_calibration_factor=0).train()
    wrapped.module.backbone(data()[0])
    assert counted(wrapped) == [(0, 1), (0, 0)]
    wrapped.eval()
    assert [part.is_calibrated for part in wrapped.module.parts.values()] == [True, False]


def test_a_part_that_is_put_into_evaluation_stays_there_until_the_whole_changes():
    wrapped = training().train()
    wrapped.module.backbone.eval()
    before = snapshot(wrapped)
    wrapped(data()[0])["loss"].backward()
    assert counted(wrapped) == [(0, 0), (0, 1)]
    moved = changed(before, wrapped)
    assert not [key for key in moved if key.startswith("module.backbone.")]
    assert "module.head.hidden.norm.running_mean" in moved
    assert wrapped.train().module.backbone.training


@pytest.mark.parametrize("kind", ["submodules", "standalone"])
def test_an_epoch_that_is_set_holds_for_all(kind):
    options = {kind: PARTS} if kind == "submodules" else {kind: ["head"], "kind": Standing}
    wrapped = training(num_batch_norm_update_epochs=1, num_observer_update_epochs=1, **options).train()
    wrapped(data()[0])
    wrapped.set_epoch(1)
    assert {epoch for epoch, _ in counted(wrapped)} == {1}
    before = snapshot(wrapped)
    with torch.no_grad():
        wrapped(5 * data()[0])
    assert [key for key in changed(before, wrapped) if not key.endswith(("schedule.step", "schedule.seal"))] == []


@pytest.mark.parametrize("kind", ["submodules", "standalone"])
def test_what_is_frozen_stays_and_what_is_unfrozen_moves(kind):
    options = {kind: PARTS} if kind == "submodules" else {kind: ["head"], "kind": Standing}
    wrapped = training(**options).train()
    wrapped(data()[0])
    for freeze, moves in ((wrapped.freeze, False), (wrapped.unfreeze, True)):
        freeze()
        before = snapshot(wrapped)
        with torch.no_grad():
            wrapped(5 * data()[0])
        keys = [key for key in changed(before, wrapped) if ".schedule." not in key]
        assert any(key.endswith("running_mean") for key in keys) is moves
        assert (
            any(key.startswith("module.head.quantization.tensors.") and key.endswith(".scale") for key in keys) is moves
        )
        assert bool(keys) is moves


class Unlike(nn.Module):
    """An auxiliary head that evaluation does not call."""

    def __init__(self):
        super().__init__()
        self.main, self.aux = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(3, 2, 1))

    def forward(self, x):
        if self.training:
            return self.main(x).mean() + self.aux(x).mean()
        return self.main(x)


def test_a_part_that_nothing_calls_is_named_when_it_is_to_be_converted(caplog):
    wrapped = edgeq.PTCFxModule(Unlike(), submodules=["main", "aux"]).calibrate(data())
    assert "the part 'aux' runs in float" in caplog.text
    assert "'main'" not in caplog.text
    with pytest.raises(
        edgeq.CalibrationError, match=r"^The part 'aux' has no ranges yet: .* is not to be quantized\.$"
    ):
        wrapped.convert()
    assert edgeq.PTCFxModule(Unlike(), submodules=["main"]).calibrate(data()).convert()(data()[0]).shape[1] == 4


def test_a_part_that_only_training_calls_is_converted_after_training():
    wrapped = edgeq.QATFxModule(Unlike().train(), submodules=["main", "aux"], total_epochs=2).train()
    wrapped(data()[0]).backward()
    wrapped.eval()
    assert torch.equal(wrapped.convert()(data()[0]), wrapped(data()[0]))
