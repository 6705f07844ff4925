"""A wrapped model stays the user's model: its parameters, its keys, its optimizer, its loop."""

import copy

import pytest
import torch
from torch import nn

import edgeq
from tests.networks import NETWORKS, batches, network
from tests.states import changed, snapshot, train_step

WRAPPERS = [edgeq.PTCFxModule, lambda model: edgeq.QATFxModule(model, total_epochs=4)]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_parameters_are_the_users_own_and_no_others(name, wrap):
    model = network(name)
    own = dict(model.named_parameters())
    wrapped = wrap(model)
    theirs = dict(wrapped.module.named_parameters())
    assert list(theirs) == list(own)
    assert all(theirs[key] is own[key] for key in own)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_float_keys_stay_with_their_shapes_types_and_order(name, wrap):
    model = network(name)
    before = {key: (value.shape, value.dtype) for key, value in model.state_dict().items()}
    after = {key: (value.shape, value.dtype) for key, value in wrap(model).module.state_dict().items()}
    assert {key: after[key] for key in before} == before
    assert [key for key in after if key in before] == list(before)
    assert len(after) > len(before)


def test_keys_have_the_same_names_in_the_module_and_below_the_wrapper():
    wrapped = edgeq.PTCFxModule(network("residual"))
    assert [f"module.{key}" for key in wrapped.module.state_dict()] == list(wrapped.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_float_checkpoint_loads_before_or_after_wrapping_with_the_same_result(name):
    trained, model, late = network(name, 7), network(name), network(name)
    model.load_state_dict(trained.state_dict())
    before = edgeq.PTCFxModule(model).calibrate(batches())
    wrapped = edgeq.PTCFxModule(late)
    missing, unexpected = wrapped.module.load_state_dict(trained.state_dict(), strict=False)
    assert unexpected == []
    assert not set(missing) & set(trained.state_dict())
    after = wrapped.calibrate(batches())
    assert changed(snapshot(before), after) == []
    assert torch.equal(before(batches()[0]), after(batches()[0]))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrapping_leaves_the_model_as_it_was(wrap):
    model = network("residual")
    image, state, kinds = batches()[0], snapshot(model), [type(module) for module in model.modules()]
    output = model(image)
    wrap(model)
    assert changed(state, model) == []
    assert [type(module) for module in model.modules()] == kinds
    assert model.relu.inplace
    assert torch.equal(model(image), output)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_the_wrapper_starts_in_the_mode_of_the_model_and_leaves_that_alone(wrap, training):
    model = network("residual").train(training)
    wrapped = wrap(model)
    assert (wrapped.training, wrapped.module.training) == (training, training)
    assert {module.training for module in model.modules()} == {training}
    wrapped.train(not training)
    assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_eval_before_the_first_batch_is_the_float_network(name, wrap):
    model = network(name)
    image = batches()[0]
    wrapped = wrap(model).eval()
    torch.testing.assert_close(wrapped(image), model(image), rtol=1e-5, atol=1e-6)


def test_the_model_stays_a_float_network_while_the_wrapped_one_trains():
    model = network("residual")
    wrapped = edgeq.QATFxModule(model, total_epochs=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped.train()
    for batch in batches():
        train_step(wrapped, optimizer, batch)
    twin = network("residual", 3)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(batches()[0]), twin(batches()[0]))


@pytest.mark.parametrize("name", NETWORKS)
def test_an_optimizer_built_before_wrapping_trains_every_parameter(name):
    model = network(name).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    wrapped = edgeq.QATFxModule(model, total_epochs=4)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    torch.manual_seed(0)
    for batch in batches():
        train_step(wrapped.train(), optimizer, batch)
    same = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert same == []


def test_parameter_groups_and_frozen_parameters_are_respected():
    model = network("residual").train()
    model.conv2.weight.requires_grad_(False)
    groups = [{"params": [model.fc.weight, model.fc.bias], "lr": 0.1}, {"params": [model.conv1.weight], "lr": 0.0}]
    optimizer = torch.optim.SGD(groups)
    wrapped = edgeq.QATFxModule(model, total_epochs=4)
    state = snapshot(model)
    wrapped(batches()[0]).square().mean().backward()
    optimizer.step()
    parameters = dict(model.named_parameters())
    assert parameters["conv2.weight"].grad is None
    assert [key for key in changed(state, model) if key in parameters] == ["fc.bias", "fc.weight"]
    wrapped.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_gradients_accumulate_over_forwards_before_or_after_a_backward():
    first, second = batches()
    one = edgeq.QATFxModule(network("separable").train(), total_epochs=4, num_batch_norm_update_epochs=0)
    one.train()
    one(first)
    one.freeze()  # all fixed now: the order of forwards and backwards makes no difference
    other = copy.deepcopy(one)
    (one(first).square().mean() + one(second).square().mean()).backward()
    other(first).square().mean().backward()
    other(second).square().mean().backward()
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("preset", ["DEFAULT", "WC4M4_AT8", "WC8P2_AT8P2", "WT8SYMP2_AT8SYMP2"])
@pytest.mark.parametrize("norms", [0, 1])
def test_two_forwards_before_one_backward_work_while_ranges_adapt(preset, norms):
    wrapped = edgeq.QATFxModule(network("residual").train(), preset, total_epochs=4, num_batch_norm_update_epochs=norms)
    (wrapped(batches()[0]).square().mean() + wrapped(batches()[1]).square().mean()).backward()
    largest = [float(parameter.grad.abs().max()) for parameter in wrapped.parameters()]
    assert all(0 < value < 100 for value in largest)


def test_keyword_arguments_dicts_and_nested_outputs_pass_through():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 2)
            self.register_buffer("mean", torch.rand(3, 1, 1))
            self.register_buffer("offset", torch.rand(3, 1, 1), persistent=False)

        def forward(self, inputs, gain=1.0):
            features = self.conv((inputs["image"] - self.mean) * gain + self.offset).mean((2, 3))
            return {"scores": self.head(features), "names": inputs["names"]}

    torch.manual_seed(0)
    model = Detector()
    names = torch.arange(4)
    loader = [({"image": batch, "names": names}, "label") for batch in batches()]
    wrapped = edgeq.PTCFxModule(model).calibrate(loader)
    result = wrapped(inputs=loader[0][0])
    assert torch.equal(result["names"], names)
    torch.testing.assert_close(result["scores"], model(loader[0][0])["scores"], rtol=0, atol=0.02)
    assert torch.equal(result["scores"], wrapped.convert()(loader[0][0])["scores"])
    assert "mean" in wrapped.module.state_dict()
    assert "offset" not in wrapped.module.state_dict()


def test_layers_are_still_instances_of_their_float_classes():
    wrapped = edgeq.PTCFxModule(network("residual"))
    for name, layer in network("residual").named_children():
        assert isinstance(wrapped.module.get_submodule(name), type(layer)), name
