"""Calibration is not training, and what is evaluated before convert() is what comes out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from tests.networks import NETWORKS, batches, network
from tests.states import changed, snapshot
from tests.test_presets import CALIBRATED

DATA = batches(2)


class Dropping(nn.Module):
    """Dropout as a module and as a function of the mode, both strong."""

    def __init__(self):
        super().__init__()
        self.conv, self.drop, self.fc = nn.Conv2d(3, 4, 3), nn.Dropout(0.9), nn.Linear(4, 3)

    def forward(self, x):
        x = self.drop(self.conv(x)).mean((2, 3))
        return self.fc(F.dropout(x, 0.9, training=self.training))


def test_calibration_drops_nothing_and_draws_no_random_numbers():
    torch.manual_seed(0)
    model = Dropping()
    wrapped = edgeq.PTCFxModule(model).train()
    random = torch.get_rng_state()
    output = wrapped(DATA[0])
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(output, model.eval()(DATA[0]), rtol=0, atol=1e-5)


def test_training_drops_as_before_by_module_and_by_function():
    torch.manual_seed(0)
    model = Dropping().train()
    image, wrapped = DATA[0], edgeq.QATFxModule(copy.deepcopy(model), total_epochs=2)
    torch.manual_seed(1)
    expected = model(image).detach()
    torch.manual_seed(1)
    torch.testing.assert_close(wrapped(image), expected, rtol=0, atol=0.1 * float(expected.abs().max()))
    wrapped.eval()
    assert torch.equal(wrapped(image), wrapped(image))


@pytest.mark.parametrize("name", NETWORKS)
def test_calibrating_twice_from_the_start_gives_equal_bits(name):
    one, other = (edgeq.PTCFxModule(network(name)).calibrate(DATA) for _ in range(2))
    assert changed(snapshot(one), other) == []


@pytest.mark.parametrize("epochs", [1, 3])
def test_batch_norms_do_not_drift(epochs):
    wrapped = edgeq.PTCFxModule(network("residual"), num_observer_update_epochs=epochs).calibrate(DATA)
    for name in ("bn1", "bn2"):
        before, after = network("residual").get_submodule(name), wrapped.module.get_submodule(name)
        for key in ("running_mean", "running_var", "num_batches_tracked", "weight"):
            assert torch.equal(getattr(after, key), getattr(before, key))


def test_batch_norms_update_their_statistics_where_it_is_asked_for():
    data = [batch + 1 for batch in DATA]
    wrapped = edgeq.PTCFxModule(network("residual"), num_batch_norm_update_epochs=1)
    wrapped.train()
    reference = network("residual")
    reference.bn1.train()
    for batch in data:
        wrapped(batch)
        reference.bn1(reference.conv1(batch))
    torch.testing.assert_close(wrapped.module.bn1.running_mean, reference.bn1.running_mean)
    torch.testing.assert_close(wrapped.module.bn1.running_var, reference.bn1.running_var)


def test_no_gradients_are_kept():
    model = network("residual")
    wrapped = edgeq.PTCFxModule(model).train()
    output = wrapped(DATA[0].requires_grad_(True))
    DATA[0].requires_grad_(False)
    assert not output.requires_grad
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_while_ranges_are_observed_the_output_is_the_float_networks(name):
    model = network(name)
    wrapped = edgeq.PTCFxModule(model).train()
    for batch in DATA:
        torch.testing.assert_close(wrapped(batch), model(batch), rtol=1e-5, atol=1e-5)


def test_after_the_observed_epochs_training_mode_is_the_quantized_network():
    wrapped = edgeq.PTCFxModule(network("residual"), bias_calibration_factor=0).calibrate(DATA)
    with torch.no_grad():
        evaluated = wrapped(DATA[0])
    wrapped.train()
    assert torch.equal(wrapped(DATA[0]), evaluated)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("preset", CALIBRATED)
def test_what_is_evaluated_before_convert_is_what_comes_out(name, preset):
    wrapped = edgeq.PTCFxModule(network(name), preset).calibrate(DATA)
    image = batches(1, seed=9, size=16)[0]
    with torch.no_grad():
        assert torch.equal(wrapped(image), wrapped.convert()(image))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_what_is_evaluated_in_training_is_what_comes_out(name, epochs):
    wrapped = edgeq.QATFxModule(network(name), total_epochs=3)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for _ in range(epochs):
        wrapped.train()
        for batch in DATA:
            optimizer.zero_grad()
            wrapped(batch).square().mean().backward()
            optimizer.step()
    wrapped.eval()
    with torch.no_grad():
        assert torch.equal(wrapped(DATA[0]), wrapped.convert()(DATA[0]))


@torch.no_grad()
def test_the_simulation_quantizes_weights_too():
    torch.manual_seed(0)
    layer = nn.Linear(8, 8, bias=False)
    wrapped = edgeq.PTCFxModule(nn.Sequential(layer), "WC4_AT8").calibrate([torch.randn(64, 8)])
    scale = layer.weight.detach().abs().amax(1, keepdim=True) / 7.5  # four bits: an error that nothing else explains
    error = (wrapped(torch.eye(8)) - layer(torch.eye(8))).abs()
    assert float(error.max()) > 0.3 * float(scale.min())


def test_calibrate_is_the_loop_in_train_mode_and_then_eval():
    by_hand, called = (edgeq.PTCFxModule(network("residual"), num_observer_update_epochs=2) for _ in range(2))
    for _ in range(2):
        by_hand.train()
        for batch in DATA:
            by_hand(batch)
    by_hand.eval()
    assert called.calibrate([(batch, 0) for batch in DATA]) is called
    assert not called.training
    assert changed(snapshot(by_hand), called) == []


def test_calibrate_runs_as_many_epochs_as_it_is_told():
    wrapped = edgeq.PTCFxModule(network("residual"), num_observer_update_epochs=5).calibrate(DATA, epochs=3)
    assert int(wrapped.module.quantization.tensors.x.observer.batches) == 6
    assert int(wrapped.module.schedule.epoch) == 2


def test_saving_before_eval_loses_no_range():
    wrapped = edgeq.PTCFxModule(network("residual"), bias_calibration_factor=0)
    wrapped.train()
    for batch in DATA:
        wrapped(batch)
    state = snapshot(wrapped)
    wrapped.eval()
    for mode in (True, False):
        loaded = edgeq.PTCFxModule(network("residual", 5), bias_calibration_factor=0).train(mode)
        loaded.load_state_dict(state)
        if mode:
            loaded.eval()
        assert torch.equal(loaded(DATA[0]), wrapped(DATA[0]))


def test_range_shrink_cuts_by_default_and_the_msa_presets_cut_nothing():
    data = batches(8, size=64)
    data[0][0, 0, 0, 0], data[0][0, 0, 0, 5] = 1000.0, -1000.0  # far less than 0.01 % of all
    for preset, low, high in (("WC8_AT8", 3, 5), ("MSA_WC8_AT8", 990, 1010)):
        wrapped = edgeq.PTCFxModule(network("residual"), preset, bias_calibration_factor=0).calibrate(data)
        quantizer = wrapped.module.quantization.tensors.x
        reach = float((quantizer.quant_max - quantizer.zero_point) * quantizer.scale)
        assert low < reach < high
