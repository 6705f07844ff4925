"""What users put around a module: autocast, torch.compile, functional calls, checkpointed activations."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import edgeq
from tests.networks import NETWORKS, batches, network
from tests.states import changed, snapshot

DATA = batches(3)


def calibrated(name="residual", **options):
    return edgeq.PTCFxModule(network(name), **options).calibrate(DATA)


def training(name="residual", **options):
    return edgeq.QATFxModule(network(name).train(), **({"total_epochs": 4} | options))


# ---- autocast


@pytest.mark.parametrize("name", NETWORKS)
def test_training_under_autocast_gives_bfloat16_and_keeps_state_and_gradients_in_float32(name):
    wrapped, plain = training(name), training(name)
    types = {key: value.dtype for key, value in wrapped.state_dict().items()}
    for model, enabled in ((wrapped, True), (plain, False)):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = model(DATA[0])
        output.float().square().mean().backward()
        assert output.dtype is (torch.bfloat16 if enabled else torch.float32)
    assert {key: value.dtype for key, value in wrapped.state_dict().items()} == types
    assert {parameter.grad.dtype for parameter in wrapped.parameters()} == {torch.float32}
    rough, exact = (torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (wrapped, plain))
    assert float(torch.cosine_similarity(rough, exact, dim=0)) > 0.95
    ranges = wrapped.module.quantization.tensors.x.observer, plain.module.quantization.tensors.x.observer
    assert torch.equal(ranges[0].low, ranges[1].low)  # the input is the same, and not rounded to bfloat16 first


@pytest.mark.parametrize("name", NETWORKS)
def test_calibration_under_autocast_finds_about_the_same_ranges(name):
    rough = edgeq.PTCFxModule(network(name))
    with torch.autocast("cpu", torch.bfloat16):
        rough.calibrate(DATA)
    exact = calibrated(name)
    for mine, theirs in zip(rough.module.quantizers(), exact.module.quantizers(), strict=True):
        assert mine.scale.dtype is torch.float32
        torch.testing.assert_close(mine.scale, theirs.scale, rtol=0.05, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_without_gradients_is_the_integer_network_under_autocast_too(name):
    wrapped = calibrated(name)
    with torch.no_grad():
        plain = wrapped(DATA[0])
        with torch.autocast("cpu", torch.bfloat16):
            cast = wrapped(DATA[0])
    assert cast.dtype in (torch.float32, torch.bfloat16)
    torch.testing.assert_close(cast.float(), plain, rtol=0.01, atol=0.01)


# ---- torch.compile


@pytest.mark.parametrize(("backend", "fullgraph"), [("eager", True), ("aot_eager", False)])
def test_a_compiled_training_step_from_the_first_batch_on_is_the_eager_one(backend, fullgraph):
    torch._dynamo.reset()
    eager = training("separable")
    compiled = copy.deepcopy(eager)
    step = torch.compile(compiled, backend=backend, fullgraph=fullgraph)
    for batch in DATA[:2]:
        outputs = [model(batch) for model in (eager, step)]
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
        for output in outputs:
            output.square().mean().backward()
    for mine, theirs in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    counted = ("step", "num_batches_tracked", "batches")
    one, other = ({k: v for k, v in m.state_dict().items() if k.endswith(counted)} for m in (eager, compiled))
    assert changed(one, other) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_evaluation_is_one_graph_and_gives_the_eager_numbers(name):
    torch._dynamo.reset()
    wrapped = calibrated(name)
    with torch.no_grad():
        output = torch.compile(wrapped, backend="eager", fullgraph=True)(DATA[0])
        assert torch.equal(output, wrapped(DATA[0]))


# ---- functional calls


def test_a_functional_call_computes_with_the_parameters_that_it_is_given():
    wrapped = edgeq.PTCFxModule(nn.Sequential(nn.Linear(512, 512)), bias_calibration_factor=0)
    torch.manual_seed(0)
    x = torch.randn(8, 512)
    wrapped.calibrate([x])
    before = snapshot(wrapped)
    factors = [1 - 0.02 * index for index in range(20)]
    with torch.no_grad():  # each set of parameters dies before the next, which may get its memory
        called = [functional_call(wrapped, scaled(before, wrapped, factor), (x,)) for factor in factors]
        assert changed(before, wrapped) == []
        for factor, output in zip(factors, called, strict=True):
            wrapped.load_state_dict(before | scaled(before, wrapped, factor))
            assert torch.equal(wrapped(x), output)


def scaled(state, module, factor):
    return {key: state[key] * factor for key, _ in module.named_parameters()}


def test_functional_calls_give_gradients_to_the_parameters_that_they_are_given():
    wrapped = training("separable", num_batch_norm_update_epochs=0)
    wrapped(DATA[0])
    wrapped.freeze()
    wrapped(DATA[0]).square().mean().backward()
    given = {key: value.detach().clone().requires_grad_() for key, value in wrapped.named_parameters()}
    loss = functional_call(wrapped, given, (DATA[0],)).square().mean()
    gradients = torch.autograd.grad(loss, list(given.values()))
    for gradient, parameter in zip(gradients, wrapped.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_give_the_same_gradients(reentrant):
    plain = training(num_batch_norm_update_epochs=0)
    plain(DATA[0])
    plain.freeze()
    stored = copy.deepcopy(plain)
    gradients = []
    for model, call in ((plain, plain), (stored, lambda x: checkpoint(stored, x, use_reentrant=reentrant))):
        torch.manual_seed(1)
        x = DATA[0].clone().requires_grad_()
        call(x).square().mean().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in model.parameters())])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_checkpointed_activations_work_while_ranges_adapt():
    wrapped = training()
    checkpoint(wrapped, DATA[0], use_reentrant=False).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in wrapped.parameters())
    assert sum(float(parameter.grad.abs().sum()) for parameter in wrapped.parameters()) > 0


# ---- hooks, parts and wholes


def test_hooks_see_the_real_values_of_a_layer_and_may_change_them():
    wrapped = calibrated()
    seen = []
    handle = wrapped.module.conv1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        hooked = wrapped(DATA[0])
        handle.remove()
        assert torch.equal(wrapped(DATA[0]), hooked)
    reference = network("residual")
    expected = reference.relu(reference.bn1(reference.conv1(DATA[0]))).detach()
    step = float(wrapped.module.quantization.tensors.conv1.scale)
    assert float((seen[0] - expected).abs().max()) < 4 * step
    assert float((seen[0] / step - (seen[0] / step).round()).abs().max()) < 1e-3
    wrapped.module.conv1.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    with torch.no_grad():
        assert not torch.equal(wrapped(DATA[0]), hooked)


def test_a_wrapper_trains_as_a_part_of_a_larger_model():
    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = training("separable")
            self.head = nn.Linear(5, 2)

        def forward(self, x):
            return self.head(self.body(x))

    student = Student()
    student.train()
    student(DATA[0]).square().mean().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    student.eval()
    assert student.body.module.quantization.schedule.is_settled
    student.train()
    assert int(student.body.module.schedule.epoch) == 1
    assert "body.module.stem.0.weight" in student.state_dict()


def test_two_wrappers_side_by_side_do_not_disturb_each_other():
    teacher, student = calibrated("residual"), training("residual")
    before = snapshot(teacher)
    with torch.no_grad():
        expected = teacher(DATA[0])
    student(DATA[1]).square().mean().backward()
    with torch.no_grad():
        assert torch.equal(teacher(DATA[0]), expected)
    assert changed(before, teacher) == []


def test_a_grouped_transposed_convolution_before_a_batch_norm_trains():
    model = nn.Sequential(nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2), nn.BatchNorm2d(8))
    wrapped = edgeq.QATFxModule(model, total_epochs=2)
    wrapped(torch.randn(2, 6, 4, 4)).square().mean().backward()
    assert float(model[0].weight.grad.abs().sum()) > 0
