"""Networks that nobody thought of: prepared and converted agree bit for bit, calibrated and trained."""

import pytest
import torch

import edgeq
from tests.graph.parity import assert_exact, calibrated, images, leaves, relative_error
from tests.graph.random_networks import RandomNetwork

PRESETS = ["WC8_AT8", "WC8SYMP2_AT8SYMP2", "WC4M4_AT8"]
SHAPE = (2, 3, 8, 8)


def check_calibrated(seed, preset):
    model = RandomNetwork(seed)
    wrapped = calibrated(model, images(4, *SHAPE[1:], seed=seed + 1), preset=preset)
    assert_exact(wrapped, images(*SHAPE, seed=seed))


def check_trained(seed, preset):
    wrapped = edgeq.QATFxModule(RandomNetwork(seed, steps=6).train(), preset, total_epochs=4)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01)
    for epoch in range(4):  # batch norms follow the first, ranges the first three
        wrapped.train()
        loss = sum(value.square().mean() for value in leaves(wrapped(images(*SHAPE, seed=epoch))))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
    assert_exact(wrapped.eval(), images(*SHAPE, seed=seed))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("seed", range(16))
def test_calibrated_networks_convert_exactly(seed, preset):
    check_calibrated(seed, preset)


@pytest.mark.parametrize("preset", PRESETS[:2])
@pytest.mark.parametrize("seed", range(12))
def test_trained_networks_convert_exactly(seed, preset):
    check_trained(seed, preset)


@pytest.mark.parametrize("seed", range(40))
def test_without_quantization_the_network_is_the_float_network(seed):
    model, x = RandomNetwork(seed), images(*SHAPE, seed=seed)
    wrapped = edgeq.PTCFxModule(model)
    with torch.no_grad():
        found, expected = leaves(wrapped.module.run_float(x)), leaves(model(x))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # batch norms are folded


@pytest.mark.parametrize("seed", range(20))
def test_training_without_quantization_is_the_float_training_bit_for_bit(seed):
    model, x = RandomNetwork(seed).train(), images(*SHAPE, seed=seed)
    wrapped = edgeq.QATFxModule(model, num_batch_norm_update_epochs=1, num_observer_update_epochs=0, total_epochs=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = leaves(wrapped.train()(x))
    model.load_state_dict(before)  # the statistics, which both update
    assert all(torch.equal(one, other) for one, other in zip(found, leaves(model(x)), strict=True))


@pytest.mark.parametrize("seed", range(16))
def test_eight_bits_stay_near_to_float(seed):
    model, x = RandomNetwork(seed, steps=4), images(*SHAPE, seed=seed)
    assert relative_error(calibrated(model, x)(x), model(x)) < 0.3


def check_exported(seed, preset, path):
    wrapped = calibrated(RandomNetwork(seed, steps=6), images(4, *SHAPE[1:], seed=seed + 1), preset=preset)
    result = wrapped.export(images(*SHAPE, seed=seed), path / "model.onnx")
    assert result.passed, str(result)


@pytest.mark.parametrize("seed", range(4))
def test_exported_networks_pass_their_comparison(seed, tmp_path):
    check_exported(seed, "WC8SYMP2_AT8SYMP2", tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_hundreds_of_exported_networks_pass_their_comparison(seed, tmp_path):
    check_exported(seed, "WC8SYMP2_AT8SYMP2", tmp_path)


def test_a_softmax_that_is_joined_with_another_tensor_passes_its_comparison(tmp_path):
    check_exported(1230, "WC8SYMP2_AT8SYMP2", tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize("preset", ["DEFAULT", "WT8SYMP2_AT8SYMP2", *PRESETS])
@pytest.mark.parametrize("seed", range(1000, 2000))
def test_a_thousand_calibrated_networks_convert_exactly(seed, preset):
    check_calibrated(seed, preset)


@pytest.mark.sweep
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_hundreds_of_trained_networks_convert_exactly(seed, preset):
    check_trained(seed, preset)
