"""Training with a live batch norm: no division by gamma, the user's eps and momentum, statistics that freeze."""

import copy

import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import SpecError
from tests.graph.parity import assert_exact, images, relative_error
from tests.graph.test_functional_norms import NormAct

PRESETS = ["WC8_AT8", "WT8SYMP2_AT8SYMP2", "WC4M4_AT8"]


def convolution(gamma=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, **options), nn.ReLU())
    nn.init.uniform_(model[1].weight, 0.5, 1.5)
    nn.init.normal_(model[1].bias, 0.5, 0.2)
    if gamma is not None:
        model[1].weight.data[: len(gamma)] = torch.tensor(gamma)
    return model.train()


def training(model, preset="WC8_AT8", **options):
    return edgeq.QATFxModule(model, preset, total_epochs=8, **options).train()


@pytest.mark.parametrize("gamma", [[], [0.0], [-1.0, -0.3], [0.0, -2.0, 1e-30, -1e-12]], ids=str)
@pytest.mark.parametrize("preset", PRESETS[:2])
def test_a_live_norm_gives_the_float_training_forward_within_quantization_error(preset, gamma):
    model, x = convolution(gamma), images(4, 3, 8, 8)
    expected = model(x)
    step = (expected.max() - expected.min()) / 255
    found = training(convolution(gamma), preset)(x)
    assert found.isfinite().all()
    assert (found - expected).abs().max() < 10 * step
    for channel, value in enumerate(gamma):
        if abs(value) < 1e-6:  # the norm's bias is all that is left
            bias = model[1].bias[channel].clamp(min=0)
            assert (found[:, channel] - bias).abs().max() < 1.1 * step


@pytest.mark.parametrize("preset", PRESETS)
def test_gamma_of_zero_and_below_leaves_finite_gradients_that_can_lift_it(preset):
    model = convolution([0.0, -1.0])
    wrapped = training(model, preset)
    (wrapped(images()) * images(2, 6, 8, 8, seed=1)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model[1].weight.grad[0].abs() > 1e-3
    assert torch.equal(model[0].weight.grad[0], torch.zeros(3, 3, 3))  # as in float
    assert model[0].weight.grad[1].abs().max() > 1e-3


@pytest.mark.parametrize(("eps", "momentum"), [(0.5, 0.3), (1e-5, None)])
def test_eps_and_momentum_are_the_users(eps, momentum):
    model, reference = convolution(eps=eps, momentum=momentum), convolution(eps=eps, momentum=momentum)
    wrapped = training(model)
    for seed in range(3):
        wrapped(images(seed=seed))
        reference(images(seed=seed))
    assert (model[1].eps, model[1].momentum, int(model[1].num_batches_tracked)) == (eps, momentum, 3)
    assert torch.allclose(model[1].running_mean, reference[1].running_mean, atol=0.01)
    assert torch.allclose(model[1].running_var, reference[1].running_var, rtol=0.05)
    wrapped.freeze(True, True)
    with torch.no_grad():
        assert torch.allclose(wrapped(images()), reference.eval()(images()), atol=0.05)


def test_a_frozen_norm_stops_following_and_does_not_look_at_the_batch():
    model = convolution()
    wrapped = training(model)
    wrapped(images(8, 3, 8, 8))
    x = images(8, 3, 8, 8, seed=1)
    live = wrapped(x)
    assert not torch.equal(live[:1], wrapped(x[:1]))
    wrapped.freeze(freeze_bn=True, freeze_observers=True)
    before = model[1].running_mean.clone(), model[1].running_var.clone(), int(model[1].num_batches_tracked)
    assert torch.allclose(wrapped(x)[:1], wrapped(x[:1]), atol=1e-6)
    assert torch.equal(before[0], model[1].running_mean)
    assert torch.equal(before[1], model[1].running_var)
    assert int(model[1].num_batches_tracked) == before[2]
    wrapped.unfreeze()
    wrapped(x)
    assert not torch.equal(before[0], model[1].running_mean)


@pytest.mark.parametrize("preset", PRESETS)
def test_training_on_frozen_statistics_is_the_deployed_network_up_to_ties(preset):
    wrapped = training(convolution([0.0, -0.5]), preset)
    wrapped(images())
    wrapped.freeze()
    trained = wrapped(images())
    step = float(wrapped.module.quantizers()[-1].scale)
    (deployed,) = assert_exact(wrapped.eval(), images())
    differing = (trained - deployed).abs()
    assert differing.max() <= 1.001 * step
    assert (differing > step / 2).float().mean() <= (0 if "P2" in preset else 0.002)


@pytest.mark.parametrize("make", [
    lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)),
    lambda: nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)),
    lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)),
    lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
    lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, affine=False)),
    lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
])  # fmt: skip
def test_every_kind_of_layer_trains_before_its_norm_and_converts_exactly(make):
    torch.manual_seed(0)
    model = make().train()
    dimensions = {"Conv1d": 1, "Conv3d": 3, "Linear": 0}.get(type(model[0]).__name__, 2)
    channels = getattr(model[0], "in_channels", 3)
    x = images(8, channels, *(5,) * dimensions)
    expected = model(x)
    wrapped = training(model)
    found = wrapped(x)
    assert ((found - expected).norm() / expected.norm()) < 0.02
    found.square().sum().backward()
    assert model[0].weight.grad.isfinite().all()
    assert_exact(wrapped.eval(), x)


def test_a_norm_over_rows_as_many_as_features_is_refused_and_can_be_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)).train()
    x = images(2, 5, 4) + torch.arange(5)[:, None]
    for _ in range(50):
        model(x)
    model.eval()
    with pytest.raises(edgeq.EdgeqError, match=r"linear layer .0.*3 dimensions, \(2, 5, 4\).*quantize = false"):
        edgeq.PTCFxModule(model, example_inputs=x)
    wrapped = edgeq.PTCFxModule(model, {"inherits": "DEFAULT", "rules": [{"name": "1", "quantize": False}]})
    with torch.no_grad():
        assert torch.allclose(wrapped.module.run_float(x), model(x), atol=1e-3)


# ---- norms that are replaced after wrapping


def synchronized_cases():
    plain = convolution()
    functional = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), NormAct(6))
    return {"folded": plain, "called as a function": functional.train()}


@pytest.mark.parametrize("name", ["folded", "called as a function"])
@pytest.mark.parametrize("again", [True, False], ids=["before the next train()", "while training"])
def test_synchronized_norms_take_the_places_of_others_after_wrapping(name, again):
    model, x = synchronized_cases()[name], images(4, 3, 8, 8)
    wrapped = training(model)
    wrapped(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(wrapped)
    assert converted is wrapped
    if again:
        wrapped.train()
    norms = [module for module in wrapped.modules() if isinstance(module, nn.SyncBatchNorm)]
    calls = []
    for norm in norms:
        norm.register_forward_hook(lambda *_: calls.append(1))
    before = model[1].running_mean.clone()
    wrapped(x).sum().backward()
    (layer,) = wrapped.module.quantized_layers()
    assert type(layer.site.norm) is nn.SyncBatchNorm
    assert layer.site.norm in norms
    assert calls == [1]
    assert not torch.equal(model[1].running_mean, before)  # the tensors are the user's
    assert model[1].weight.grad is not None
    wrapped.eval()
    assert_exact(wrapped, x)
    twin = copy.deepcopy(wrapped).train()
    twin(x)
    (copied,) = twin.module.quantized_layers()
    assert copied.site.norm in list(twin.modules())
    assert copied.site.norm is not layer.site.norm


@pytest.mark.parametrize(
    "other", [nn.Identity(), nn.BatchNorm2d(4), nn.BatchNorm2d(6, track_running_stats=False)], ids=str
)
def test_nothing_else_can_take_the_place_of_a_folded_norm(other):
    wrapped = training(convolution())
    wrapped.module.set_submodule("1", other)
    with pytest.raises(SpecError, match=r"'1' was BatchNorm2d\(6.*, which is folded into a layer, and now is .*: only"):
        wrapped(images())
    with pytest.raises(SpecError, match="only another batch norm over as many channels"):
        wrapped.train()


def test_another_batch_norm_of_the_users_is_used_from_then_on():
    wrapped, x = training(convolution()), images(4, 3, 8, 8)
    wrapped(x)
    other = convolution([2.0] * 6)[1]
    wrapped.module.set_submodule("1", other)
    wrapped.train()
    wrapped(x)
    assert int(other.num_batches_tracked) == 1
    assert relative_error(wrapped.eval()(x), nn.Sequential(convolution()[0], other, nn.ReLU()).eval()(x)) < 0.2
