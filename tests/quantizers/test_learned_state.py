"""The state of quantizers that learn: what moves it, what does not, and that nothing of it is lost."""

import copy
import itertools
import pickle

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edgeq.phase import Phase
from tests.graph.parity import assert_exact
from tests.quantizers.learning import DATA, DEPLOYED, LEARNING, loss_of, optimizer_of, prepared, train_epoch, trained
from tests.states import changed, snapshot

presets = pytest.mark.parametrize("preset", LEARNING)
deployed = pytest.mark.parametrize("preset", DEPLOYED)


def scales(model):
    found = {tensor.name: tensor.scale for tensor in model.module.quantizers()}
    return found | {layer.site.name: layer.weight_quantizer.scale for layer in model.module.quantized_layers()}


def learned(model):
    """The quantizers of activations that learn a scale, each with the scale that its parameters say."""
    for tensor in model.module.quantizers():
        if tensor.scheme is not None and list(tensor.scheme.parameters()):
            scale, _ = tensor.scheme.numbers(tensor.qparams, 1)
            yield tensor, scale.detach()


@presets
def test_parameters_learn_in_all_epochs_until_they_are_frozen_by_hand(preset):
    model = prepared(preset, epochs=6)
    optimizer = optimizer_of(model)
    parameters = model.quantizer_parameters()
    seen = []
    for epoch in range(6):
        train_epoch(model, optimizer, epoch)
        seen.append([parameter.detach().clone() for parameter in parameters])
    phases = {tensor.phase for tensor in model.module.quantizers()}
    assert phases == {Phase.QUANTIZE}  # observers have been frozen by the schedule
    for one, other in itertools.pairwise(seen):
        moved = [not torch.equal(a, b) for a, b in zip(one, other, strict=True)]
        assert sum(moved) >= 0.4 * len(parameters)  # PACT's stand still where nothing is clipped
    model.freeze(freeze_observers=True)
    held = {key: scale.clone() for key, scale in scales(model).items()}
    optimizer.zero_grad()
    for batch in DATA:
        loss_of(model, batch).backward()
    assert all(parameter.grad is None for parameter in parameters)
    model.eval()
    assert all(torch.equal(scale, held[key]) for key, scale in scales(model).items())


@deployed
def test_evaluation_reads_what_the_last_step_of_the_optimizer_has_made(preset):
    model = trained(preset, epochs=4)
    found = list(learned(model))
    assert len(found) >= 5
    for tensor, scale in found:
        assert float(tensor.scale / scale) == pytest.approx(1.0, abs=1.1e-3)  # but for ties that are avoided


@presets
def test_evaluation_changes_nothing(preset):
    model = trained(preset)
    before = snapshot(model)
    with torch.no_grad():
        model(10 * DATA[0])
    assert changed(before, model.eval()) == []


@presets
@pytest.mark.parametrize("interrupted", [1, 2, 3])
def test_a_training_resumes_bit_for_bit(preset, interrupted):
    def run(model, optimizer, epochs):
        for epoch in epochs:
            train_epoch(model, optimizer, epoch)

    whole, part, resumed = (prepared(preset) for _ in range(3))
    optimizers = [optimizer_of(model) for model in (whole, part, resumed)]
    run(whole, optimizers[0], range(4))
    run(part, optimizers[1], range(interrupted))
    resumed.load_state_dict(snapshot(part))
    optimizers[2].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    run(resumed, optimizers[2], range(interrupted, 4))
    assert changed(snapshot(whole), resumed) == []


@presets
def test_an_evaluation_that_loads_a_training_reads_what_its_last_step_has_made(preset):
    model, loaded = prepared(preset, epochs=2), prepared(preset, epochs=2).eval()
    optimizer = optimizer_of(model)
    for epoch in range(3):
        train_epoch(model, optimizer, epoch)
    assert not model.module.schedule.observers_are_live
    loaded.load_state_dict(snapshot(model))
    assert changed(snapshot(model.eval()), loaded) == []


@presets
@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_copies_and_pickles_go_on_alike(preset, when):
    model = prepared(preset)
    if when != "before":
        train_epoch(model, optimizer_of(model))
    if when == "after":
        model.eval()
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for one in (model, *copies):
        torch.manual_seed(3)
        train_epoch(one, optimizer_of(one), 1)
        one.eval()
    for other in copies:
        assert changed(snapshot(model), other) == []
        assert not {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}


@deployed
def test_an_average_evaluates_with_the_averaged_parameters_and_converts(preset):
    model = prepared(preset)
    optimizer = optimizer_of(model)
    average = AveragedModel(model, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for epoch in range(3):
        train_epoch(model, optimizer, epoch)
        average.update_parameters(model)
    average.eval()
    assert_exact(average.module, DATA[0])
    for tensor, scale in learned(average.module):
        assert float(tensor.scale / scale) == pytest.approx(1.0, abs=1.1e-3)


@presets
def test_autocast_trains_the_parameters_in_float32(preset):
    model = prepared(preset)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, DATA[0])
    loss.backward()
    parameters = model.quantizer_parameters()
    assert {parameter.dtype for parameter in parameters} <= {torch.float32}
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in parameters)


@presets
def test_a_network_in_half_precision_keeps_its_numbers_in_float32(preset):
    model = prepared(preset).to(torch.bfloat16)
    assert {parameter.dtype for parameter in model.quantizer_parameters()} <= {torch.float32}
    (model(DATA[0].to(torch.bfloat16)) ** 2).mean().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.quantizer_parameters())
