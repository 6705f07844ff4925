"""What a quantized layer keeps between calls is never stale."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

import edgeq
from tests.modules.oracle import calibrated
from tests.networks import batches, network

IMAGE = batches(1, seed=9)[0]


def outputs(wrapped, image=IMAGE):
    with torch.no_grad():
        return wrapped(image)


def an_optimizer_step(wrapped):
    wrapped.train()
    loss = wrapped(batches()[0]).square().mean()
    loss.backward()
    torch.optim.SGD(wrapped.parameters(), lr=0.5).step()
    wrapped.eval()


def a_loaded_state(wrapped):
    other = edgeq.QATFxModule(network("residual", seed=7), total_epochs=9).train()
    other(batches(seed=7)[0])
    wrapped.load_state_dict(other.eval().state_dict())


def a_write_in_place(wrapped):
    with torch.no_grad():
        wrapped.module.conv1.weight.mul_(1.3)


def a_write_behind_the_back(wrapped):
    wrapped.module.conv1.weight.data.mul_(1.3)
    wrapped.eval()


def another_parameter(wrapped):
    wrapped.module.conv2.weight = nn.Parameter(wrapped.module.conv2.weight.detach() * 0.7)


def another_bias(wrapped):
    with torch.no_grad():
        wrapped.module.fc.bias.add_(0.3)


def another_variance(wrapped):
    wrapped.module.bn1.running_var.mul_(1.5)


def another_mean(wrapped):
    wrapped.module.bn2.running_mean.add_(0.5)


def another_gamma(wrapped):
    with torch.no_grad():
        wrapped.module.bn2.weight.neg_()


def another_weight_scale(wrapped):
    wrapped.module.conv1.weight_quantizer.scale.mul_(2)


def another_input_scale(wrapped):
    wrapped.module.quantized_layers()[0].site.source.scale.mul_(0.5)


def another_zero_point(wrapped):
    wrapped.module.quantized_layers()[0].site.source.zero_point.add_(60)


CHANGES = [
    an_optimizer_step, a_loaded_state, a_write_in_place, a_write_behind_the_back, another_parameter, another_bias,
    another_variance, another_mean, another_gamma, another_weight_scale, another_input_scale, another_zero_point,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_kept_follows(change):
    wrapped = edgeq.QATFxModule(network("residual"), total_epochs=9).train()
    wrapped(batches()[0])
    wrapped.eval()
    before = outputs(wrapped)
    change(wrapped)
    expected = outputs(copy.deepcopy(wrapped))  # a copy keeps nothing
    found = outputs(wrapped)
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)
    assert torch.equal(wrapped.convert()(IMAGE), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_layer_follows_its_type_and_back(dtype):
    wrapped = edgeq.PTCFxModule(network("residual")).calibrate(batches())
    before = outputs(wrapped)
    wrapped.to(dtype)
    found = outputs(wrapped, IMAGE.to(dtype))
    assert found.dtype == dtype
    assert torch.allclose(found.float(), before, atol=0.05 * float(before.abs().max()))
    again = outputs(wrapped.to(torch.float32))
    assert torch.equal(again, outputs(copy.deepcopy(wrapped)))
    assert again.dtype == torch.float32
    assert torch.equal(again, before) or dtype == torch.bfloat16  # which has rounded the weights


def test_a_copy_and_its_original_keep_nothing_in_common():
    wrapped = edgeq.PTCFxModule(network("residual")).calibrate(batches())
    before = outputs(wrapped)
    twin = copy.deepcopy(wrapped)
    assert torch.equal(outputs(twin), before)
    a_write_in_place(twin)
    assert torch.equal(outputs(wrapped), before)
    assert not torch.equal(outputs(twin), before)


def test_parameters_that_come_and_go_are_not_confused():
    wrapped = calibrated(nn.Linear(8, 8), x=torch.randn(8, 8))
    own, x = {key: value.clone() for key, value in wrapped.named_parameters()}, torch.randn(4, 8)
    factors = torch.linspace(1, 0.4, 30)
    with torch.no_grad():  # each set is freed before the next, which may take its memory
        found = [functional_call(wrapped, {key: own[key] * factor for key in own}, (x,)) for factor in factors]
        for factor, output in zip(factors, found, strict=True):
            twin = copy.deepcopy(wrapped)
            for key, value in twin.named_parameters():
                value.copy_(own[key] * factor)
            assert torch.equal(twin(x), output)


def test_an_unchanged_layer_computes_its_integers_once():
    wrapped = edgeq.PTCFxModule(network("residual")).calibrate(batches())
    outputs(wrapped)
    kept = [layer._cache["exact"][2] for layer in wrapped.module.quantized_layers()]
    outputs(wrapped)
    assert all(
        layer._cache["exact"][2] is old for layer, old in zip(wrapped.module.quantized_layers(), kept, strict=True)
    )
