"""A quantized layer before a live batch norm, against plain autograd."""

import copy

import pytest
import torch
from torch import nn

import edgeq

GAMMAS = [1.0, -0.8, 0.0, 0.3, -1.7, 2.5]

LAYERS = {
    "conv": (lambda bias: nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.BatchNorm2d, (8, 3, 7, 7)),
    "depthwise": (lambda bias: nn.Conv2d(6, 6, 3, groups=6, bias=bias), nn.BatchNorm2d, (8, 6, 7, 7)),
    "conv1d": (lambda bias: nn.Conv1d(3, 6, 3, bias=bias), nn.BatchNorm1d, (8, 3, 9)),
    "transposed": (lambda bias: nn.ConvTranspose2d(3, 6, 3, stride=2, bias=bias), nn.BatchNorm2d, (8, 3, 5, 5)),
    "linear": (lambda bias: nn.Linear(5, 6, bias=bias), nn.BatchNorm1d, (32, 5)),
}


def pair(name, bias=True, seed=0, **options):
    """A layer and a norm that has seen other data, with positive, negative and no gamma."""
    torch.manual_seed(seed)
    make, norm, shape = LAYERS[name]
    layer, norm = make(bias), norm(6, **options)
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.3, 3)
        if norm.affine:
            norm.weight.copy_(torch.tensor(GAMMAS))
            norm.bias.normal_()
    return layer, norm, torch.randn(shape)


def per_channel(values, layer):
    axis = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
    return values.reshape([-1 if dim == axis else 1 for dim in range(layer.weight.dim())])


def rounded(layer, norm):
    """The weight as it is rounded before the norm, and the scale that the deployed one has, from the statistics
    as they are: round(w f / s) s / f with f = gamma / sqrt(variance + eps).
    """
    weight = layer.weight.detach()
    gamma = torch.ones(6) if norm.weight is None else norm.weight.detach()
    factor = gamma / (norm.running_var + norm.eps).sqrt()
    rows = (
        (weight * per_channel(factor, layer)).transpose(0, 1 if "Transpose" in type(layer).__name__ else 0).flatten(1)
    )
    scale = torch.maximum(-rows.amin(1) / 128, rows.amax(1) / 127)
    scale = torch.where(scale > 0, scale, 1 / 127)  # gamma = 0: nothing to represent
    raw = scale / factor.abs()
    largest = weight.transpose(0, 1 if "Transpose" in type(layer).__name__ else 0).flatten(1).abs().amax(1)
    raw = torch.where(factor == 0, largest, raw)
    signed = per_channel(torch.where(factor < 0, -raw, raw), layer)
    return (weight / signed).round().clamp(-128, 127) * signed, scale


def in_training(layer, norm):
    """The quantized layer of a wrapped network in its first epoch, over copies of the two."""
    model = nn.Sequential(copy.deepcopy(layer), copy.deepcopy(norm))
    wrapped = edgeq.QATFxModule(model, "WC8_AT8", total_epochs=10).train()
    return wrapped, wrapped.module.quantized_layers()[0], model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_forward_gradients_and_statistics_are_those_of_the_rounded_weight(name, bias):
    layer, norm, x = pair(name, bias, eps=0.01, momentum=0.3)
    _, quantized, model = in_training(layer, norm)
    weight, scale = rounded(layer, norm)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = quantized.simulated(x1)

    straight = copy.deepcopy(layer)
    straight.weight = nn.Parameter(weight)  # so that its gradient is the straight-through one of the float weight
    norm.train()
    expected = norm(straight(x2))
    assert torch.allclose(found, expected, atol=2e-5)

    direction = torch.randn(found.shape)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    assert torch.allclose(x1.grad, x2.grad, atol=1e-4)
    assert torch.allclose(model[0].weight.grad, straight.weight.grad, atol=2e-3, rtol=1e-4)
    assert torch.allclose(model[1].weight.grad, norm.weight.grad, atol=1e-3, rtol=1e-4)
    assert torch.allclose(model[1].bias.grad, norm.bias.grad, atol=1e-4)
    assert model[1].weight.grad.abs().min() > 1e-3  # gamma = 0 can learn
    assert model[0].weight.grad.transpose(0, 1 if name == "transposed" else 0)[2].abs().max() == 0  # its weight cannot

    assert torch.allclose(model[1].running_mean, norm.running_mean, atol=1e-5)
    assert torch.allclose(model[1].running_var, norm.running_var, atol=1e-5)
    assert model[1].num_batches_tracked == norm.num_batches_tracked == 1
    assert torch.allclose(quantized.weight_quantizer.scale, scale, rtol=1e-5)


@pytest.mark.parametrize("options", [{"momentum": None}, {"momentum": 1.0}, {"affine": False}, {"eps": 1.0}])
def test_the_norms_own_settings_hold(options):
    layer, norm, x = pair("conv", **options)
    _, quantized, model = in_training(layer, norm)
    norm.train()
    for step in range(3):
        weight, _ = rounded(layer, norm)
        straight = copy.deepcopy(layer)
        straight.weight = nn.Parameter(weight)
        expected = norm(straight(x + step))
        assert torch.allclose(quantized.simulated(x + step), expected, atol=5e-5)
    assert torch.allclose(model[1].running_mean, norm.running_mean, atol=1e-5)
    assert torch.allclose(model[1].running_var, norm.running_var, rtol=1e-4)
    assert model[1].eps == norm.eps
    assert model[1].momentum == norm.momentum


def test_gamma_that_is_zero_learns_and_comes_back():
    layer, norm, x = pair("conv")
    wrapped, _, model = in_training(layer, norm)
    with torch.no_grad():
        norm_gamma = model[1].weight
        norm_gamma.zero_()
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.01)
    target = torch.randn(8, 6, 7, 7)
    losses = []
    for _ in range(20):
        loss = (wrapped(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert torch.isfinite(loss)
    assert norm_gamma.abs().min() > 1e-4
    assert losses[-1] < losses[0]


def test_what_trains_before_the_norm_is_what_is_deployed_behind_it():
    """The codes before a live norm, with the sign of gamma, are the codes of the weight with the norm folded in."""
    layer, norm, _ = pair("conv")
    with torch.no_grad():
        norm.weight[2] = 1e-3  # not zero, so that its codes are those of the folded weight as well
    _, quantized, model = in_training(layer, norm)
    _, scale = rounded(layer, norm)
    factor = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    raw = quantized.weight_quantizer.raw(
        model[0].weight, quantized.weight_quantizer.live_scale(model[0].weight, factor)
    ).detach()
    deployed = quantized.weight_quantizer.codes(quantized.folded(model[0].weight, None)[0].detach())
    steps = (raw * factor[:, None, None, None] / scale[:, None, None, None]).round()
    assert torch.equal(steps, deployed)
    assert deployed.abs().amax((1, 2, 3)).min() >= 127


def test_a_frozen_norm_trains_folded():
    layer, norm, x = pair("conv")
    wrapped, quantized, model = in_training(layer, norm)
    wrapped(x)
    wrapped.freeze(True, True)
    statistics = model[1].running_mean.clone(), model[1].running_var.clone()
    weight, bias, gamma, beta = (
        p.detach().clone().requires_grad_() for p in (*model[0].parameters(), *model[1].parameters())
    )
    factor = gamma * torch.rsqrt(statistics[1] + norm.eps)
    deployed, shift = weight * factor[:, None, None, None], (bias - statistics[0]) * factor + beta
    scale = quantized.weight_quantizer.scale[:, None, None, None]
    ratio = (deployed / scale).detach()
    inside = (ratio > -128.5) & (ratio < 127.5)
    straight = torch.where(inside, deployed, deployed.detach())
    straight = straight + (ratio.round().clamp(-128, 127) * scale - straight).detach()
    unit = quantized.weight_quantizer.scale * quantized.site.source.scale
    shift = shift + ((shift / unit).round() * unit - shift).detach()
    expected = nn.functional.conv2d(x, straight, shift, padding=1)
    found = quantized.simulated(x)
    assert torch.allclose(found, expected, atol=2e-5)
    direction = torch.randn(found.shape)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for mine, reference in zip(
        (*model[0].parameters(), *model[1].parameters()), (weight, bias, gamma, beta), strict=True
    ):
        assert torch.allclose(mine.grad, reference.grad, atol=2e-3, rtol=1e-3)
        assert reference.grad.abs().max() > 1e-3
    assert torch.equal(model[1].running_mean, statistics[0])
    assert torch.equal(model[1].running_var, statistics[1])
