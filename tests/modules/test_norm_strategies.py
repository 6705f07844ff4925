"""How layers are trained with the batch norm that is folded into them: one integer network, six ways to it."""

import copy

import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import SpecError
from edgeq.modules.norm_strategies import NORM_STRATEGIES
from tests.networks import batches, network

FOLDING = ["batch", "corrected", "frozen", "live", "merged"]


class Layer(nn.Sequential):
    """One layer with a batch norm whose statistics are far from those of its data."""

    def __init__(self, layer, norm):
        super().__init__(layer, norm)
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-1.5, 2.0, norm.num_features))
            norm.bias.copy_(torch.linspace(1.0, -1.0, norm.num_features))
            norm.running_mean.copy_(torch.linspace(-0.3, 0.3, norm.num_features))
            norm.running_var.copy_(torch.linspace(0.5, 2.0, norm.num_features))


LAYERS = {
    "conv1d": (lambda: Layer(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (8, 4, 9)),
    "conv2d": (lambda: Layer(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)), (8, 4, 6, 6)),
    "depthwise": (lambda: Layer(nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)), (8, 6, 6, 6)),
    "conv3d": (lambda: Layer(nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6)), (8, 4, 4, 4, 4)),
    "transposed": (lambda: Layer(nn.ConvTranspose2d(4, 6, 2, 2), nn.BatchNorm2d(6)), (8, 4, 5, 5)),
    "linear": (lambda: Layer(nn.Linear(4, 6), nn.BatchNorm1d(6)), (32, 4)),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def trained(model, strategy, *data, **options):
    preset = {"inherits": "WC8_AT8", "batch_norm": strategy, **options}
    wrapped = edgeq.QATFxModule(model, preset, total_epochs=9, num_batch_norm_update_epochs=9)
    wrapped.train()
    for x in data:
        wrapped(x)
    return wrapped


def made(kind, seed=0):
    torch.manual_seed(seed)
    build, shape = LAYERS[kind]
    return build().train(), torch.randn(shape) + 0.5


@every_layer
@pytest.mark.parametrize("strategy", FOLDING)
def test_evaluation_is_the_folded_layer(kind, strategy):
    model, x = made(kind)
    wrapped = trained(model, strategy, x, 2 * x).eval()
    (layer,) = wrapped.module.quantized_layers()
    weight, bias = layer.folded(layer.weight, layer.bias)
    with torch.no_grad():
        expected = nn.Sequential(*model.children()).eval()(x)
        folded = layer.operation(x, weight, bias)
    assert (folded - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(wrapped(x), wrapped.convert()(x))
    assert (wrapped(x) - expected).norm() < 0.03 * expected.norm()


@every_layer
@pytest.mark.parametrize("strategy", ["live", "batch", "corrected"])
def test_in_training_the_norm_sees_the_batch_and_its_statistics_are_the_float_networks(kind, strategy):
    model, x = made(kind)
    reference = copy.deepcopy(model)
    wrapped = trained(model, strategy, x)
    expected = reference(x)
    found = wrapped(x)
    reference(x)
    assert (found - expected).norm() < 0.03 * expected.norm()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        one, other = getattr(model[1], name), getattr(reference[1], name)
        tolerance = 0.02 if strategy == "live" else 2e-3  # that of the input's rounding
        assert torch.allclose(one.float(), other.float(), rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("strategy", ["batch", "corrected"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deviations_that_are_small_beside_the_mean_are_those_of_the_float_output(strategy, dtype):
    _, x = made("conv2d")
    layer, norm = Layer(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, momentum=1.0))
    layer.weight.data *= 1e-2
    layer.bias.data += 30.0
    with torch.no_grad():
        expected = nn.functional.conv2d(x, layer.weight).var((0, 2, 3))
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        output = trained(nn.Sequential(layer, norm).train(), strategy)(x)
    assert torch.allclose(norm.running_var, expected, rtol=0.03)
    found = output.float().var((0, 2, 3))
    assert torch.allclose(found, norm.weight.square() * expected / (expected + norm.eps), rtol=0.06)


@pytest.mark.parametrize("strategy", ["frozen", "merged"])
def test_frozen_statistics_stand_still(strategy):
    model, x = made("conv2d")
    wrapped = trained(model, strategy, x)
    before = [model[1].running_mean.clone(), model[1].running_var.clone()]
    wrapped(3 * x)
    assert torch.equal(model[1].running_mean, before[0])
    assert torch.equal(model[1].running_var, before[1])


@every_layer
def test_merging_keeps_the_function_and_the_names_and_leaves_a_norm_that_only_adds(kind):
    model, x = made(kind)
    keys, expected = list(model.state_dict()), copy.deepcopy(model).eval()(x)
    parameters = dict(model.named_parameters())
    wrapped = trained(model, "merged", x)
    layer, norm = model
    assert list(model.state_dict()) == keys
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert (model.eval()(x) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(norm.weight, torch.ones_like(norm.weight))
    learning = {name for name, parameter in wrapped.module.named_parameters() if parameter.requires_grad}
    assert learning == {"0.weight", "1.bias"}
    weight = layer.weight.clone()
    wrapped.eval()
    wrapped.train()
    wrapped(x)
    assert torch.equal(layer.weight, weight)


def test_the_strategies_have_the_gradients_of_their_formulas():
    model, x = made("conv2d")
    batch_norm = copy.deepcopy(model)
    upstream = torch.randn(8, 6, 4, 4)
    (batch_norm(x) * upstream).sum().backward()
    for strategy in ("live", "batch", "corrected"):
        wrapped = trained(copy.deepcopy(model), strategy, x)
        wrapped.zero_grad()
        (wrapped(x) * upstream).sum().backward()
        gradients = dict(wrapped.module.named_parameters())
        for name, parameter in batch_norm.named_parameters():
            found = gradients[name].grad
            assert (found - parameter.grad).norm() < 0.1 * parameter.grad.norm() + 1e-4, (strategy, name)


def test_a_separate_norm_is_an_operation_of_its_own():
    model, x = made("conv2d")
    wrapped = trained(model, "separate", x, x).eval()
    (layer,) = wrapped.module.quantized_layers()
    assert layer.site.norm is None
    assert len(wrapped.module.quantizers()) == 3  # input, convolution, norm
    expected = model.eval()(x)
    assert torch.equal(wrapped(x), wrapped.convert()(x))
    assert (wrapped(x) - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("strategy", ["live", "batch", "corrected", "frozen"])
def test_a_gamma_of_zero_gives_finite_numbers_and_can_still_learn(strategy):
    model, x = made("conv2d")
    with torch.no_grad():
        model[1].weight[2] = 0.0
    wrapped = trained(model, strategy, x)
    output = wrapped(x)
    assert bool(output.isfinite().all())
    (output * torch.randn_like(output)).sum().backward()
    assert bool(model[1].weight.grad.isfinite().all())
    assert model[1].weight.grad[2] != 0


@pytest.mark.parametrize("strategy", list(NORM_STRATEGIES))
@pytest.mark.parametrize("name", ["residual", "separable"])
def test_a_network_trains_converts_and_exports(strategy, name, tmp_path):
    torch.manual_seed(0)
    preset = {"inherits": "WC8_AT8", "batch_norm": strategy}
    model = edgeq.QATFxModule(network(name), preset, total_epochs=3)
    data = [(x, x.mean((1, 2, 3)).gt(0).long()) for x in batches(4, seed=1)]
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for _ in range(3):
        model.train()
        for x, y in data:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    assert sum(losses[-4:]) < sum(losses[:4])
    assert torch.equal(model(data[0][0]), model.convert()(data[0][0]))
    assert model.export(data[0][0], tmp_path / "model.onnx").passed


@pytest.mark.parametrize("strategy", ["batch", "corrected", "merged"])
def test_a_training_goes_on_bit_for_bit_from_a_checkpoint(strategy):
    data = batches(4, seed=2)
    models = [trained(network("separable"), strategy, data[0]) for _ in range(2)]
    models[0].eval()
    models[1].load_state_dict(models[0].state_dict())
    models[1].eval()
    for model in models:
        torch.manual_seed(1)
        model.train()
        model(data[1])
        model.eval()
    assert all(torch.equal(value, models[1].state_dict()[key]) for key, value in models[0].state_dict().items())


def test_a_norm_that_two_layers_share_cannot_be_merged():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.two(self.norm(self.one(x))))

    with pytest.raises(SpecError, match=r"merged.*others use"):
        trained(Shared(), "merged", torch.randn(2, 3, 4, 4))


def test_an_unknown_strategy_is_named_with_the_nearest():
    with pytest.raises(SpecError, match="merged"):
        trained(network("residual"), "mergd")
