"""Copies, pickles, averages and casts of a wrapper, at any moment of its life."""

import copy
import io
import pickle

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import edgeq
from tests.networks import NETWORKS, batches, network
from tests.states import changed, run_epochs, snapshot, train_step

DATA = batches(2)
MOMENTS = ["wrapped", "in training", "evaluated", "frozen", "calibrated"]


def at(moment, name="residual"):
    """A wrapper at some moment of its life, in the mode that it is in then."""
    if moment == "calibrated":
        return edgeq.PTCFxModule(network(name)).calibrate(DATA)
    wrapped = edgeq.QATFxModule(network(name).train(), total_epochs=2)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
    for _ in range({"wrapped": 0, "frozen": 3}.get(moment, 1)):
        wrapped.train()
        for batch in DATA:
            train_step(wrapped, optimizer, batch)
    return wrapped.eval() if moment == "evaluated" else wrapped


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved_and_loaded,
}


def continued(wrapped):
    """The state after two more epochs and an evaluation, and what the network gives then."""
    torch.manual_seed(5)
    run_epochs(wrapped, DATA, 2)
    wrapped.eval()
    return snapshot(wrapped), wrapped(DATA[0]).detach()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_lives_its_own_life_and_the_same_one(name, moment, copied):
    wrapped = at(moment, name)
    before = snapshot(wrapped)
    twin = COPIES[copied](wrapped)
    assert twin.training == wrapped.training
    assert changed(before, twin) == []
    state, output = continued(twin)
    assert changed(before, wrapped) == []  # nothing is shared
    own_state, own_output = continued(wrapped)
    assert changed(own_state, state) == []
    assert torch.equal(own_output, output)


@pytest.mark.parametrize("copied", COPIES)
def test_a_converted_network_copies_like_any_module(copied):
    converted = at("calibrated").convert()
    twin = COPIES[copied](converted)
    assert changed(snapshot(converted), twin) == []
    assert torch.equal(twin(DATA[0]), converted(DATA[0]))


def test_a_copy_trains_its_own_parameters():
    wrapped = at("wrapped")
    twin = copy.deepcopy(wrapped)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in wrapped.parameters()}
    twin(DATA[0]).square().mean().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert all(parameter.grad is None for parameter in wrapped.parameters())


@pytest.mark.parametrize("moment", ["wrapped", "in training"])
def test_a_moving_average_of_one_update_is_the_trained_network(moment):
    wrapped = at(moment)
    average = AveragedModel(wrapped, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    train_step(wrapped, torch.optim.SGD(wrapped.parameters(), lr=0.05), DATA[0])
    average.update_parameters(wrapped)
    average.eval()
    wrapped.eval()
    torch.testing.assert_close(average(DATA[0]), wrapped(DATA[0]), rtol=0, atol=1e-6)


def test_a_moving_average_follows_the_training_and_converts():
    wrapped = at("wrapped")
    average = AveragedModel(wrapped, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
    expected = None
    for _ in range(3):
        wrapped.train()
        for batch in DATA:
            train_step(wrapped, optimizer, batch)
            average.update_parameters(wrapped)
            weight = wrapped.module.fc.weight.detach().clone()
            expected = weight if expected is None else 0.75 * expected + 0.25 * weight
    torch.testing.assert_close(average.module.module.fc.weight, expected)
    average.eval()
    with torch.no_grad():
        assert torch.equal(average(DATA[0]), average.module.convert()(DATA[0]))
    assert wrapped.training


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_scales_and_ranges_stay_float32_when_the_network_is_cast(name, moment):
    wrapped = at(moment, name)
    kept = {key: value for key, value in snapshot(wrapped).items() if key.rpartition(".")[2] in KEPT}
    wrapped.to(torch.float64).to(torch.bfloat16)
    now = {key: value for key, value in wrapped.state_dict().items() if key in kept}
    assert changed(kept, now) == []
    assert {parameter.dtype for parameter in wrapped.parameters()} == {torch.bfloat16}


KEPT = ("scale", "zero_point", "low", "high", "batches", "epoch", "step")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "noise"), [(torch.float64, 1e-12), (torch.float16, 1e-3), (torch.bfloat16, 1e-3)])
def test_a_network_of_another_type_calibrates_and_evaluates_in_it(name, dtype, noise):
    plain = edgeq.PTCFxModule(network(name), bias_calibration_factor=0).calibrate(DATA)
    cast = edgeq.PTCFxModule(network(name), bias_calibration_factor=0).to(dtype)
    cast.calibrate([batch.to(dtype) for batch in DATA])
    with torch.no_grad():
        output, reference = cast(DATA[0].to(dtype)), plain(DATA[0])
    assert output.dtype is dtype
    assert float((output.float() - reference).square().mean() / reference.square().mean()) < noise
    converted = cast.convert()(DATA[0])
    assert converted.dtype is torch.float32
    assert float((converted - reference).square().mean() / reference.square().mean()) < noise


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_another_type_trains_in_it(name):
    wrapped = edgeq.QATFxModule(network(name).train(), total_epochs=2).to(torch.float64)
    twin = edgeq.QATFxModule(network(name).train(), total_epochs=2)
    for model, dtype in ((wrapped, torch.float64), (twin, torch.float32)):
        torch.manual_seed(0)
        model(DATA[0].to(dtype)).square().mean().backward()
    for wide, narrow in zip(wrapped.parameters(), twin.parameters(), strict=True):
        assert wide.grad.dtype is torch.float64
        torch.testing.assert_close(wide.grad.float(), narrow.grad, rtol=0.05, atol=1e-3)


def test_casting_a_calibrated_network_there_and_back_changes_nothing():
    wrapped = at("calibrated")
    with torch.no_grad():
        output = wrapped(DATA[0])
        assert torch.equal(wrapped.to(torch.float64)(DATA[0].double()).float(), output)
        assert torch.equal(wrapped.to(torch.float32)(DATA[0]), output)


def test_a_converted_network_keeps_its_numbers_when_it_is_cast():
    converted = at("calibrated", "residual").convert()
    output, before = converted(DATA[0]), snapshot(converted)
    assert changed(before, converted.half()) == []
    assert torch.equal(converted(DATA[0]), output)


def test_a_network_moves_to_the_meta_device():
    wrapped = at("calibrated").to("meta")
    assert {value.device.type for value in wrapped.state_dict().values()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_network_moves_to_a_gpu_and_back(name, moment):
    wrapped = at(moment, name)
    wrapped.cuda()
    assert wrapped(DATA[0].cuda()).is_cuda
    wrapped.cpu().eval()
    with torch.no_grad():
        assert torch.equal(wrapped(DATA[0]), wrapped.convert()(DATA[0]))
