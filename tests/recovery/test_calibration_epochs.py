"""When biases are calibrated, and what that leaves alone."""

import copy

import torch

import edgeq
from tests.networks import batches, network

COARSE = {"inherits": "WC8_AT8", "weight": {"bits": 3}}  # large errors


def test_it_happens_once_when_the_epoch_ends_and_never_in_evaluation():
    model = network("residual")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}

    def moved():
        return sorted(name for name, value in model.named_parameters() if not torch.equal(value, before[name]))

    wrapped = edgeq.PTCFxModule(model, COARSE).train()
    for batch in batches():
        wrapped(batch)
        assert moved() == []
    wrapped.eval()
    assert moved() == ["bn1.bias", "bn2.bias", "fc.bias"]
    state = copy.deepcopy(wrapped.state_dict())
    for batch in batches(seed=3):
        wrapped(batch)
    wrapped.eval()
    wrapped.convert()
    assert all(torch.equal(value, state[key]) for key, value in wrapped.state_dict().items())


def test_training_defers_it_to_the_end_of_an_epoch_and_has_none_by_default():
    for factor, moved in ((None, []), (1.0, ["bn1.bias", "bn2.bias", "fc.bias"])):
        model = network("residual").train()
        options = {} if factor is None else {"bias_calibration_factor": factor}
        wrapped = edgeq.QATFxModule(model, COARSE, total_epochs=4, **options).train()
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        for batch in batches():
            wrapped(batch).sum().backward()
        assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
        wrapped.eval()
        changed = sorted(name for name, value in model.named_parameters() if not torch.equal(value, before[name]))
        assert changed == moved


def test_the_float_reference_stays_what_it_was_over_any_number_of_epochs():
    model, image = network("residual"), batches(1, seed=9)[0]
    expected = model(image).detach()
    wrapped = edgeq.PTCFxModule(model, COARSE, num_observer_update_epochs=2)
    for _ in range(4):
        wrapped.train()
        for batch in batches():
            wrapped(batch)
        wrapped.eval()
        assert torch.allclose(wrapped.module.run_float(image), expected, atol=1e-5)
    assert wrapped.module.conv2.bias_shift.abs().max() > 0.01


def test_it_leaves_modes_gradients_and_layers_as_they_were():
    model = network("residual")
    wrapped = edgeq.QATFxModule(model, COARSE, total_epochs=4, bias_calibration_factor=1.0).train()
    wrapped(batches()[0]).sum().backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    wrapped.module.finish()
    assert wrapped.module.bn1.training
    assert wrapped.module.dropout.training
    assert {layer.phase.value for layer in wrapped.module.quantized_layers()} == {"adapt"}
    assert all(layer.recorder is None for layer in wrapped.module.quantized_layers())
    assert all(torch.equal(value.grad, gradients[name]) for name, value in model.named_parameters())
    assert all(value.requires_grad for value in model.parameters())
