"""Quantized layers are the user's layers: of their classes, over their parameters, under their keys."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import edgeq
from edgeq.modules.layers import QUANTIZED, QuantizedReference, shell


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_quantized_layer_is_of_its_float_class_and_holds_the_users_parameters(kind):
    module = kind(4, 6) if kind is nn.Linear else kind(4, 6, 3)
    model = nn.Sequential(module)
    wrapped = edgeq.PTCFxModule(model)
    (layer,) = wrapped.module.quantized_layers()
    assert type(layer) is QUANTIZED[kind]
    assert isinstance(layer, kind)
    assert layer.weight is module.weight
    assert layer.bias is module.bias
    assert type(model[0]) is kind  # the model itself stays float
    assert {"0.weight", "0.bias"} <= wrapped.module.state_dict().keys()


def test_a_users_subclass_of_a_layer_is_quantized_with_the_weight_where_it_is():
    class Half(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    model, x = nn.Sequential(Half(4, 6)), torch.randn(16, 4)
    wrapped = edgeq.PTCFxModule(model).calibrate([x])
    assert wrapped.module.quantized_layers()[0].weight is model[0].weight
    assert (wrapped(x) - model(x)).abs().max() < 0.02


def test_a_shell_shares_parameters_and_nothing_else():
    module = nn.Conv2d(3, 4, 3)
    other = shell(module)
    assert other.weight is module.weight
    other.register_forward_hook(lambda *_: None)
    other.training = False
    del other._parameters["bias"]
    assert not module._forward_hooks
    assert module.training
    assert module.bias is not None


class Twice(nn.Module):
    """One layer called twice, and a function with parameters of the model's own."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(6, 6)
        self.matrix, self.offset = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(3))

    def forward(self, x):
        x = self.shared(F.relu(self.shared(x)))
        return F.linear(x, self.matrix, self.offset)


def test_further_calls_and_functions_are_references_without_keys_of_their_own():
    torch.manual_seed(0)
    model = Twice()
    wrapped = edgeq.PTCFxModule(model, bias_calibration_factor=0)
    layers = wrapped.module.quantized_layers()
    assert [isinstance(layer, QuantizedReference) for layer in layers] == [False, True, True]
    assert layers[1].weight is model.shared.weight
    assert layers[2].weight is model.matrix
    assert layers[2].bias is model.offset
    own = [key for key in wrapped.module.state_dict() if not key.startswith("quantization") and "." in key]
    assert [key for key in own if "weight" in key or "bias" in key] == [
        "shared.weight", "shared.bias", "shared.bias_shift", "shared.weight_quantizer.scale",
    ]  # fmt: skip
    x = torch.randn(16, 6)
    wrapped.calibrate([x])
    assert torch.equal(layers[0].weight_quantizer.scale, layers[1].weight_quantizer.scale)
    error = (wrapped(x) - model(x)).square().mean() / model(x).square().mean()
    assert error < 1e-3
    with torch.no_grad():
        assert torch.equal(wrapped(x), wrapped.convert()(x))


def test_a_shared_layer_gets_the_gradients_of_all_its_calls():
    torch.manual_seed(0)
    model = Twice()
    x = torch.randn(16, 6)
    model(x).square().mean().backward()
    expected = model.shared.weight.grad.clone()
    model.zero_grad()
    wrapped = edgeq.QATFxModule(model, total_epochs=4).train()
    wrapped(x).square().mean().backward()
    assert F.cosine_similarity(model.shared.weight.grad.flatten(), expected.flatten(), dim=0) > 0.99
    assert model.matrix.grad.abs().max() > 0
