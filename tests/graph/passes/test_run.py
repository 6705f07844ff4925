"""All rewrites together: what they tell, what they measure, and what they never touch."""

import copy
import pickle

import pytest
import torch
from torch import nn

import edgeq
from edgeq.graph.passes.registry import REWRITES, Rewrite, Stage
from tests.graph.parity import AS_WRITTEN, assert_exact, calibrated, images, relative_error
from tests.graph.passes.networks import assert_files_agree, layers_of, lively
from tests.networks import NETWORKS, batches, network


class Everything(nn.Module):
    """Something for each of the rewrites that run by default."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.BatchNorm2d(3)
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.both, self.act, self.same, self.drop = nn.BatchNorm2d(10), nn.ReLU(), nn.Identity(), nn.Dropout(0.5)
        self.before, self.conv, self.linear = nn.BatchNorm2d(10), nn.Conv2d(10, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        x = self.first(x)
        y = self.act(self.both(torch.cat([self.left(x), self.right(x)], 1)))
        y = torch.relu(self.conv(self.before(self.same(y))) * 0.5 + 1)
        y = torch.cat([y[:, 3:], y[:, :3].sigmoid() * 2 * 3], 1)[:, :, 1:][:, :, :4]
        return self.linear(self.drop(y.mean((2, 3))))


def everything():
    return lively(Everything())


def test_all_of_them_find_their_places_and_the_function_stays():
    x = images(4, 3, 9, 9)
    wrapped = edgeq.PTCFxModule(everything(), example_inputs=x)
    changes = wrapped.module.changes
    assert {change.rewrite for change in changes.each} == {name for name in REWRITES if REWRITES[name].default}
    expected = everything()(x)
    assert changes.difference < 1e-5 * changes.size
    assert changes.size == pytest.approx(float(expected.abs().max()))
    with torch.no_grad():
        assert torch.allclose(wrapped.module.run_float(x), expected, rtol=1e-4, atol=1e-5)
    assert all(change.difference <= 1e-5 * max(1.0, change.size) for change in changes.each)


def test_fewer_roundings_are_more_accurate():
    x = images(16, 3, 9, 9)
    expected = everything()(x)
    errors = [
        relative_error(calibrated(everything(), x, rewrites=wanted, bias_calibration_factor=0)(x), expected)
        for wanted in (None, AS_WRITTEN)
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2", "WC4M4_AT8"])
def test_files_of_all_together_agree(preset, tmp_path):
    x = images(4, 3, 9, 9)
    wrapped = calibrated(everything(), x, preset=preset)
    assert_exact(wrapped, x)
    assert_files_agree(wrapped, x, folder=tmp_path)


def test_explain_tells_each_change_in_a_section_of_its_own():
    wrapped = edgeq.PTCFxModule(everything())
    table, section = wrapped.explain().split("\n\n")
    assert section.splitlines()[0] == "rewrites"
    assert len(section.splitlines()) == 1 + len(wrapped.module.changes.each)
    assert "norm_before_layer  before: a batch norm -> folded into 'conv' behind it (the function stays)" in section
    (row,) = (line for line in table.splitlines() if line.startswith("conv "))
    assert "norm before, * 0.5, + 1, clip 0.." in row
    told = edgeq.PTCFxModule(everything(), example_inputs=images(4, 3, 9, 9)).explain()
    assert "outputs on the example inputs: difference up to" in told
    assert "rewrites" not in edgeq.PTCFxModule(everything(), rewrites=AS_WRITTEN).explain()


def test_the_list_survives_copies_and_is_no_part_of_the_state():
    wrapped = edgeq.PTCFxModule(everything())
    for copied in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert copied.module.changes == wrapped.module.changes
        assert copied.explain() == wrapped.explain()
    assert not [key for key in wrapped.module.state_dict() if "changes" in key]


def test_the_users_model_keys_and_parameters_stay():
    model = everything()
    before = copy.deepcopy(model.state_dict())
    given = dict(model.named_parameters())
    wrapped = edgeq.QATFxModule(model, total_epochs=2, example_inputs=images(4, 3, 9, 9))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter is given[key] for key, parameter in wrapped.module.named_parameters())
    assert set(wrapped.module.state_dict()) >= set(before)
    assert isinstance(model.same, nn.Identity)


def test_a_resumed_run_goes_on_bit_for_bit():
    def train(wrapped, steps, first=0):
        optimizer = torch.optim.SGD(wrapped.parameters(), 0.05)
        for step in range(first, first + steps):
            torch.manual_seed(step)
            wrapped(images(4, 3, 9, 9, seed=step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    whole = edgeq.QATFxModule(everything().train(), total_epochs=4).train()
    train(whole, 2)
    state = copy.deepcopy(whole.module.state_dict())
    train(whole, 3, first=2)
    resumed = edgeq.QATFxModule(everything().train(), total_epochs=4).train()
    resumed.module.load_state_dict(state)
    train(resumed, 3, first=2)
    for (key, one), other in zip(whole.module.state_dict().items(), resumed.module.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    assert_exact(resumed.eval(), images(4, 3, 9, 9))


def test_a_training_step_moves_statistics_as_the_float_network_does():
    model, reference = everything().train(), everything().train()
    wrapped = edgeq.QATFxModule(model, total_epochs=4, num_observer_update_epochs=0).train()
    for seed in range(3):
        for net in (wrapped, reference):
            torch.manual_seed(seed)
            net(images(4, 3, 9, 9, seed=seed))
    state = model.state_dict()
    for key, value in reference.state_dict().items():
        assert torch.allclose(state[key].float(), value.float(), rtol=1e-4, atol=1e-5), key


def test_one_that_says_that_it_keeps_the_function_and_does_not_is_caught():
    def wrong(draft):
        for node in draft.nodes():
            if draft.kind(node) == "relu":
                x = draft.sample(4, 4)
                draft.record(node, "relu -> nothing", draft.value(node, {node.args[0]: x}), x)

    REWRITES._entries["wrong"] = Rewrite("wrong", wrong, Stage.TIDY, keeps=True, default=False, changes="")
    try:
        with pytest.raises(
            edgeq.SpecError, match=r"'wrong' would change what '1' computes by [12]\.\d+.*'wrong': False"
        ):
            edgeq.PTCFxModule(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), rewrites={"wrong": True})
    finally:
        del REWRITES._entries["wrong"]


def test_example_inputs_that_do_not_fit_are_told_as_ever():
    with pytest.raises(edgeq.SpecError, match=r"does not run on example_inputs, torch.float32 \(2, 5\)"):
        edgeq.PTCFxModule(everything(), example_inputs=torch.zeros(2, 5))


def test_random_numbers_are_as_if_nothing_had_been_drawn():
    model, x = everything(), images(4, 3, 9, 9)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    edgeq.PTCFxModule(model, example_inputs=x)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_without_any_use_for_them_are_not_less_accurate(name):
    data = batches(2)
    expected = network(name)(data[0])
    errors = []
    for wanted in (None, AS_WRITTEN):
        wrapped = edgeq.PTCFxModule(network(name), rewrites=wanted, bias_calibration_factor=0).calibrate(data)
        errors.append(relative_error(wrapped(data[0]), expected))
    assert errors[0] <= 1.02 * errors[1]


def test_in_half_precision_they_keep_the_function_too():
    wrapped = edgeq.PTCFxModule(everything().bfloat16())
    assert len(wrapped.module.changes.each) >= 9
    assert layers_of(wrapped)[0].weight.dtype is torch.bfloat16
    assert layers_of(edgeq.PTCFxModule(everything()).double())[0].weight.dtype is torch.float64
