"""Evaluation evaluates: nothing is observed, counted, updated or drawn."""

import pytest
import torch

import edgeq
from tests.networks import NETWORKS, batches, network
from tests.states import changed, run_epochs, snapshot

DATA = batches(2)


def calibrating(name):
    return edgeq.PTCFxModule(network(name), num_batch_norm_update_epochs=1, num_observer_update_epochs=2)


def training(name):
    return edgeq.QATFxModule(network(name), total_epochs=4)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("wrap", [calibrating, training])
@pytest.mark.parametrize("epochs", [0, 1, 2, 3, 4])
def test_evaluation_changes_nothing_in_any_phase(name, wrap, epochs):
    wrapped = wrap(name)
    run_epochs(wrapped, DATA, epochs)
    wrapped.eval()
    before, random = snapshot(wrapped), torch.get_rng_state()
    outputs = [wrapped(100 * batch) for batch in DATA]  # far outside of the ranges
    with torch.no_grad():
        again = [wrapped(100 * batch) for batch in DATA]
    wrapped.eval()
    assert changed(before, wrapped) == []
    assert torch.equal(torch.get_rng_state(), random)
    for first, second in zip(outputs, again, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("preset", ["DEFAULT", "WC8P2_AT8P2"])
def test_evaluation_is_the_same_with_and_without_gradients(name, preset):
    for seed in range(5):
        wrapped = edgeq.PTCFxModule(network(name, seed), preset).calibrate(batches(2, seed))
        image = batches(1, seed + 50)[0]
        with torch.no_grad():
            exact = wrapped(image)
        assert torch.equal(wrapped(image), exact)


def test_eval_of_the_module_is_eval_of_the_wrapper():
    one, other = training("residual"), training("residual")
    for wrapped in (one, other):
        torch.manual_seed(0)
        run_epochs(wrapped, DATA, 1)
    one.eval()
    other.module.eval()
    assert changed(snapshot(one), other) == []
    assert torch.equal(one(DATA[0]), other(DATA[0]))
    assert changed(snapshot(one), other) == []


def test_evaluation_gives_gradients_to_inputs_and_leaves_parameters_alone():
    wrapped = calibrating("residual").calibrate(DATA)
    image = DATA[0].clone().requires_grad_()
    wrapped(image).sum().backward()
    assert float(image.grad.abs().sum()) > 0
    assert image.grad.isfinite().all()


def test_the_same_input_gives_the_same_output_however_often_and_in_whatever_batch():
    wrapped = calibrating("separable").calibrate(DATA)
    with torch.no_grad():
        whole = wrapped(DATA[0])
        for index in range(len(DATA[0])):
            assert torch.equal(wrapped(DATA[0][index : index + 1])[0], whole[index])


def test_channels_last_and_strided_inputs_give_the_same_numbers():
    wrapped = calibrating("residual").calibrate(DATA)
    image = DATA[0]
    strided = torch.stack([image, image], dim=-1)[..., 0]
    with torch.no_grad():
        plain = wrapped(image)
        assert torch.equal(wrapped(image.to(memory_format=torch.channels_last)), plain)
        assert torch.equal(wrapped(strided), plain)
    assert plain.is_contiguous()


def test_inference_mode_works_in_training_and_evaluation():
    plain, inferring = calibrating("residual"), calibrating("residual")
    plain.calibrate(DATA)
    with torch.inference_mode():
        inferring.calibrate(DATA)
        output = inferring(DATA[0])
    assert changed(snapshot(plain), inferring) == []
    with torch.no_grad():
        assert torch.equal(plain(DATA[0]), output)
    seen = inferring.module.quantization.tensors.x.observer.batches
    assert int(seen) == 4  # two epochs of two batches, and in the third nothing is observed
    inferring.train()
    inferring(DATA[0])
    assert (int(seen), int(inferring.module.schedule.epoch)) == (4, 2)


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_with_gradients_gives_the_same_numbers_and_gradients_too(name, preset):
    for seed in range(3):
        wrapped = edgeq.PTCFxModule(network(name, seed), preset).calibrate(batches(2, seed))
        image = batches(1, seed=seed + 50)[0].requires_grad_()
        outputs = wrapped(image)
        with torch.no_grad():
            assert torch.equal(outputs, wrapped(image))
        assert torch.equal(outputs, wrapped.convert()(image))
        outputs.square().sum().backward()
        assert float(image.grad.abs().sum()) > 0
        assert [key for key, value in wrapped.named_parameters() if value.grad is None] == []
