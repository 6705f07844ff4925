"""Layers that stand still and weights that are pulled towards their codes, in an unchanged loop."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import edgeq
from edgeq.errors import SpecError
from edgeq.modules.dampening import rounding_error
from edgeq.phase import Phase
from edgeq.stability import LEAST, MOMENTUM
from tests.networks import batches, network

DATA = batches(4, seed=5)


def wrapped(total_epochs=4, name="separable", preset="WC8_AT8", **options):
    return edgeq.QATFxModule(network(name).train(), preset, total_epochs=total_epochs, **options)


def optimizer_of(model, lr=0.05):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-2)


def epoch(model, optimizer):
    torch.manual_seed(0)  # for dropout
    model.train()
    for batch in DATA:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
    model.eval()


def state_of(layer):
    """All that may change of a layer while it is trained."""
    modules = [layer, *layer.site.norms, *([] if layer.site.target is None else [layer.site.target])]
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


def unchanged(layer, before):
    return all(torch.equal(new, old) for new, old in zip(state_of(layer), before, strict=True))


@pytest.mark.parametrize("preset", ["WC8_AT8", "W4A4_LSQ"])
def test_depthwise_layers_stand_still_from_the_middle_on_and_no_others(preset):
    model = wrapped(preset=preset, freeze_layers="depthwise", num_batch_norm_update_epochs=4)
    optimizer = optimizer_of(model, 0.01)
    layers = model.module.quantized_layers()
    narrow = [layers[0], layers[2]]  # what sees the image, and the depthwise one
    assert [layer.operation.groups for layer in layers] == [1, 1, 16, 1, 1]
    for _ in range(2):
        epoch(model, optimizer)
    before = [state_of(layer) for layer in layers]
    model.train()
    for _ in range(2):
        epoch(model, optimizer)
    for layer, old in zip(layers, before, strict=True):
        moved = not torch.equal(layer.weight, old[list(layer.state_dict()).index("weight")])
        assert moved is (layer not in narrow)
        if layer in narrow:
            assert unchanged(layer, old)


def test_frozen_norms_still_use_their_running_statistics():
    model = wrapped(freeze_layers="depthwise", freeze_epoch=1, num_batch_norm_update_epochs=4)
    model.train()
    model(DATA[0])
    model.train()
    stability = model.module.quantization.stability
    for layer, frozen in zip(model.module.quantized_layers(), stability.frozen.tolist(), strict=True):
        assert layer.phase is (Phase.QUANTIZE if frozen else Phase.ADAPT)
        assert [norm.training for norm in layer.site.norms] == [not frozen] * len(layer.site.norms)


def test_ranges_do_not_stand_still_before_there_are_any():
    whole, still = wrapped(), wrapped(freeze_layers="depthwise", freeze_epoch=0, num_batch_norm_update_epochs=0)
    for model in (whole, still):
        model.freeze(freeze_bn=True, freeze_observers=None)
        model.train()
    assert torch.equal(whole(DATA[0]), still(DATA[0]))
    still.eval().train()
    layer = still.module.quantized_layers()[0]
    assert layer.phase is layer.weight_quantizer.phase is layer.site.target.phase is Phase.QUANTIZE


def test_unstable_layers_are_found_where_an_epoch_begins_and_not_where_it_is_resumed():
    options = {"name": "residual", "freeze_layers": "unstable", "preset": "WC4_AT8", "freeze_epoch": 0}
    model = wrapped(**options)
    optimizer = optimizer_of(model, 0.5)
    model.train()
    for batch in DATA:
        model(batch).square().mean().backward()
        optimizer.step()
    assert float(model.module.quantization.stability.unrest.max()) >= LEAST
    resumed = wrapped(**options)
    resumed.load_state_dict(model.state_dict())
    assert not resumed.module.quantization.stability.frozen.any()
    for each in (model, resumed):
        each.train()
        assert each.module.quantization.stability.frozen.any()


@pytest.mark.parametrize("freeze", ["depthwise", "unstable"])
def test_an_average_of_networks_with_layers_that_stand_still_is_one(freeze):
    model = wrapped(freeze_layers=freeze, freeze_epoch=1)
    optimizer = optimizer_of(model, 0.01)
    average = AveragedModel(model, use_buffers=True)
    for _ in range(3):
        epoch(model, optimizer)
        average.update_parameters(model)
    average.eval()
    with torch.no_grad():
        assert torch.equal(average(DATA[0]), average.module.convert()(DATA[0]))


def test_the_share_of_errors_that_change_their_sign_is_followed():
    model = wrapped(name="residual", freeze_layers="unstable", preset="WC4_AT8")
    optimizer = optimizer_of(model)
    layers = model.module.quantized_layers()
    signs, unrest = [torch.zeros_like(layer.weight) for layer in layers], [0.0] * len(layers)
    model.train()
    for batch in DATA * 2:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        for index, layer in enumerate(layers):
            now = rounding_error(layer).sign()
            changed = float((now * signs[index] < 0).float().mean())
            unrest[index] += MOMENTUM * (changed - unrest[index])
            signs[index] = now
        optimizer.step()
    stability = model.module.quantization.stability
    assert stability.unrest.tolist() == pytest.approx(unrest, abs=1e-6)
    assert max(unrest) > 0.0


def test_the_least_stable_layers_stand_still_for_ever():
    model = wrapped(name="residual", freeze_layers="unstable", preset="WC4_AT8", freeze_epoch=1)
    optimizer = optimizer_of(model, 0.5)
    epoch(model, optimizer)
    stability, layers = model.module.quantization.stability, model.module.quantized_layers()
    unrest = stability.unrest.clone()
    model.train()
    frozen = stability.frozen.tolist()
    least = max(0.04, float(torch.quantile(unrest, 0.85)))
    assert frozen == [share >= least for share in unrest.tolist()]
    assert 0 < sum(frozen) < len(layers)
    before = [state_of(layer) for layer in layers]
    epoch(model, optimizer)
    epoch(model, optimizer)
    for layer, old, still in zip(layers, before, frozen, strict=True):
        assert not still or unchanged(layer, old)
    assert stability.frozen.tolist() == frozen


def test_a_training_resumes_with_what_stands_still_and_what_was_seen():
    options = {"name": "residual", "freeze_layers": "unstable", "preset": "WC4_AT8", "freeze_epoch": 1}
    model = wrapped(**options)
    optimizer = optimizer_of(model, 0.5)
    epoch(model, optimizer)
    epoch(model, optimizer)
    resumed = wrapped(**options)
    resumed.load_state_dict(model.state_dict())
    again = optimizer_of(resumed, 0.5)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    copied = copy.deepcopy(model)
    copied_optimizer = optimizer_of(copied, 0.5)
    copied_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((model, optimizer), (resumed, again), (copied, copied_optimizer)):
        epoch(each, its)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
        assert torch.equal(tensor, copied.state_dict()[name]), name


def test_the_pull_grows_as_a_cosine_over_the_epochs_and_rests_in_evaluation():
    model = wrapped(total_epochs=5, dampening=2.0)
    (layer, *_) = model.module.quantized_layers()
    for index in range(5):
        model.train()
        model(DATA[0])
        assert layer.dampening == pytest.approx(1 - math.cos(math.pi * index / 4))
        model.eval()
        assert layer.dampening == 0.0


@pytest.mark.parametrize("preset", ["WC8_AT8", "W4A4_LSQ"])
def test_nothing_is_pulled_towards_codes_before_there_are_any(preset):
    model = wrapped(preset=preset, dampening=1.0, num_observer_update_epochs=4)
    model.set_epoch(3)
    model.train()
    for _ in range(2):
        model(DATA[0])
        assert {layer.dampening for layer in model.module.quantized_layers()} == {0.0}
    model.set_epoch(3)
    model(DATA[0])
    assert {layer.dampening for layer in model.module.quantized_layers()} == {1.0}


def spread(dampening):
    """How far weights lie from their codes, in steps, after a training on noise."""
    model = wrapped(
        total_epochs=6, name="residual", preset={"weight": {"bits": 4, "granularity": "tensor"}}, dampening=dampening
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(6):
        epoch(model, optimizer)
    errors = [rounding_error(layer).flatten() for layer in model.module.quantized_layers()]
    return torch.cat(errors).abs().mean().item()


def test_dampened_weights_end_nearer_to_their_codes():
    assert spread(2.0) < 0.7 * spread(0.0)


def test_gradients_of_a_scaled_loss_are_pulled_as_much():
    model = wrapped(total_epochs=2, name="residual", dampening=1.0, num_observer_update_epochs=1)
    for _ in range(2):
        model.train()
        model(DATA[0])
    pulls = []
    for scale in (1.0, 1024.0):
        each = copy.deepcopy(model)
        each.use_grad_scaler(torch.amp.GradScaler("cpu", init_scale=scale))
        (0.0 * each(DATA[0])).sum().backward()
        layer = each.module.quantized_layers()[0]
        pulls.append(layer.weight.grad / scale)
    assert torch.allclose(pulls[0], pulls[1])
    assert torch.allclose(pulls[0], -2 * rounding_error(layer), atol=1e-6)


def test_a_network_is_copied_in_the_middle_of_a_scaled_step():
    model = wrapped(total_epochs=2, name="residual", dampening=1.0, distillation=1.0)
    optimizer = optimizer_of(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model.use_grad_scaler(scaler)
    scaler.scale(model(DATA[0]).square().mean()).backward()
    scaler.unscale_(optimizer)
    copied = copy.deepcopy(model)
    scaler.step(optimizer)
    scaler.update()
    assert (copied.teacher.scaler, copied.module.quantization.stability.scaler) == (None, None)
    assert (model.teacher.scaler, model.module.quantization.stability.scaler) == (scaler, scaler)


def test_each_part_of_a_network_is_watched():
    model = wrapped(total_epochs=2, freeze_layers="depthwise", freeze_epoch=0, submodules=["stem", "expand", "depth"])
    model.train()
    found = {path: part.quantization.stability.frozen.tolist() for path, part in model.module.parts.items()}
    assert found == {"stem": [True], "expand": [False], "depth": [True]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"freeze_layers": "depthwize"}, "depthwise"),
        ({"freeze_epoch": 1}, "freeze_layers"),
        ({"freeze_layers": "depthwise", "freeze_epoch": -1}, "at least 0"),
        ({"dampening": -1.0}, "dampening"),
        ({"dampening": "strong"}, "dampening"),
        ({"total_epochs": 1, "dampening": 1.0}, "total_epochs"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(SpecError, match=words):
        wrapped(**options)


def test_without_options_nothing_is_added():
    assert wrapped().module.quantization.stability is None
    assert not [key for key in wrapped().state_dict() if "stability" in key]


def test_a_frozen_layer_is_left_alone_by_an_optimizer_with_momentum():
    model = wrapped(freeze_layers="depthwise", freeze_epoch=1)
    optimizer = optimizer_of(model)
    epoch(model, optimizer)
    model.train()
    frozen = [
        layer
        for layer, still in zip(
            model.module.quantized_layers(), model.module.quantization.stability.frozen.tolist(), strict=True
        )
        if still
    ]
    assert frozen
    assert all(parameter.grad is None for layer in frozen for parameter in layer.parameters())
    assert isinstance(frozen[0], nn.Conv2d)
