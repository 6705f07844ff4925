"""A training that goes on from a recovery."""

import pytest
import torch
from torch import nn

import edgeq
from tests.networks import batches, network
from tests.states import changed, snapshot

DATA = batches(6, seed=1)
LOW = {"inherits": "DEFAULT", "weight": {"bits": 4}, "activation": {"bits": 4}}
LEARNED = {"inherits": "W4A4_LSQ"}


def codes(model):
    found = []
    with torch.no_grad():
        for layer in model.module.quantized_layers():
            weight, _ = layer.folded(layer.weight, layer.bias)
            found.append(layer.weight_quantizer.codes(weight))
    return found


def offsets(model):
    return [layer.weight_quantizer.offset for layer in model.module.quantized_layers()]


def recovered(preset, steps, name="residual", model=None):
    """Trained for an epoch without steps of an optimizer, frozen but for what quantizers learn, and recovered."""
    model = network(name).train() if model is None else model.train()
    wrapped = edgeq.QATFxModule(model, preset, total_epochs=2)
    for batch in DATA:
        wrapped(batch)
    wrapped.freeze(True, True if preset is LOW else None)
    wrapped.eval()
    report = wrapped.recover(DATA, steps)
    assert report.steps[0].kept
    return wrapped


@pytest.mark.parametrize("preset", [LOW, LEARNED], ids=["fixed", "learned"])
@pytest.mark.parametrize("name", ["residual", "separable"])
def test_the_first_step_trains_the_codes_that_were_recovered(name, preset):
    wrapped = recovered(preset, ["compensated_rounding"], name)
    before, moved = codes(wrapped), [bool(offset.any()) for offset in offsets(wrapped)]
    weights = [layer.weight.detach().clone() for layer in wrapped.module.quantized_layers()]
    assert any(moved)
    wrapped.train()
    assert all(
        torch.equal(layer.weight, old) for layer, old in zip(wrapped.module.quantized_layers(), weights, strict=True)
    )
    wrapped(DATA[0]).sum().backward()
    assert not any(bool(offset.any()) for offset in offsets(wrapped) if offset is not None)
    moves = sum(int((new != old).sum()) for new, old in zip(codes(wrapped), before, strict=True))
    assert moves <= 2e-3 * sum(old.numel() for old in before)
    for layer, old, was in zip(wrapped.module.quantized_layers(), weights, moved, strict=True):
        assert torch.equal(layer.weight, old) is not was


def test_without_a_step_nothing_is_taken_in():
    wrapped = recovered(LOW, ["compensated_rounding"])
    before = snapshot(wrapped)
    wrapped.train()
    assert all(".schedule." in key for key in changed(before, wrapped.eval()))


def test_quantizers_learn_on_from_scales_that_were_recovered():
    wrapped = recovered(LEARNED, [("scale_learning", {"steps": 60, "scale_rate": 0.02})])
    tensors = [tensor for tensor in wrapped.module.quantizers() if tensor.scheme is not None]
    scales = [tensor.scale.clone() for tensor in tensors]
    learned = [tensor.scheme.step.detach().abs() for tensor in tensors]
    assert max(float((scale / step - 1).abs()) for scale, step in zip(scales, learned, strict=True)) > 0.01
    parameters = wrapped.quantizer_parameters()
    wrapped.train()
    wrapped(DATA[0])
    assert all(mine is its for mine, its in zip(parameters, wrapped.quantizer_parameters(), strict=True))
    for tensor, scale in zip(tensors, scales, strict=True):
        assert float(tensor.scheme.step.detach().abs()) == pytest.approx(float(scale), rel=2.1e-3)
        assert float(tensor.scale) == pytest.approx(float(scale), rel=2.1e-3)


class Twice(nn.Module):
    """One convolution, called twice: the codes of its calls differ."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(torch.relu(self.conv(x)))


def test_a_weight_that_is_used_twice_stays_and_has_its_nearest_codes():
    torch.manual_seed(0)
    wrapped = recovered(LOW, ["compensated_rounding"], model=Twice())
    weight = wrapped.module.quantized_layers()[0].weight.detach().clone()
    assert all(bool(offset.any()) for offset in offsets(wrapped))
    wrapped.train()
    wrapped(DATA[0])
    assert torch.equal(wrapped.module.quantized_layers()[0].weight, weight)
    assert not any(bool(offset.any()) for offset in offsets(wrapped))


def test_ranges_that_are_taken_anew_are_those_that_a_training_goes_on_from():
    wrapped = recovered(LEARNED, ["equalization"], "separable")
    tensors = [tensor for tensor in wrapped.module.quantizers() if tensor.scheme is not None]
    assert all(not tensor.scheme.has_started for tensor in tensors)
    wrapped.train()
    wrapped(DATA[0])
    for tensor in tensors:
        assert tensor.scheme.has_started
        assert float(tensor.scale) == pytest.approx(float(tensor.scheme.step.detach().abs()), rel=2.1e-3)


def test_a_return_to_training_does_not_compute_weights():
    """Spectral norm takes a step towards the greatest singular value at each reading in training."""
    torch.manual_seed(0)
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3))
    wrapped = edgeq.QATFxModule(nn.Sequential(conv, nn.ReLU(), nn.Conv2d(8, 4, 3)).train(), LOW, total_epochs=3)
    wrapped(DATA[0])
    before = snapshot(wrapped.eval())
    wrapped.train()
    assert all(".schedule." in key for key in changed(before, wrapped.eval()))
