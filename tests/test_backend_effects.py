"""What a backend fills in: reduced range, bits of the bias, rounding."""

import pytest
import torch

import edgeq
from edgeq.arithmetic import Rounding
from tests.networks import batches, network


@pytest.mark.parametrize("name", ["DEFAULT", "WC8SYMP2_AT8SYMP2", "WC4_AT8"])
def test_x86_leaves_the_top_bit_of_activations_unused_and_weights_as_they_are(name):
    image = batches(1, 5)[0]
    converted = {}
    for backend in ("qnnpack", "x86"):
        wrapped = edgeq.PTCFxModule(network("residual"), name, backend).calibrate(batches())
        spans = {int(tensor.quant_max - tensor.quant_min) for tensor in wrapped.module.quantizers()}
        assert spans == {127 if backend == "x86" else 255}
        converted[backend] = wrapped.convert()
    layers = {key: value.module.get_submodule("conv1") for key, value in converted.items()}
    codes = {key: layer(layer.source.encode(image)) for key, layer in layers.items()}
    assert {key: value.dtype for key, value in codes.items()} == dict.fromkeys(codes, torch.uint8)
    assert 127 < int(codes["qnnpack"].max()) <= 255
    assert 63 < int(codes["x86"].max()) <= 127
    assert int(layers["x86"].weight.abs().max()) == int(layers["qnnpack"].weight.abs().max())


def test_a_bias_of_tda4vm_fits_into_16_bits_without_being_cut_off():
    model = network("residual")
    with torch.no_grad():
        model.fc.bias[:2] = torch.tensor([30.0, -30.0])
        model.bn1.bias[0] = 50.0
    image = batches(1, 5)[0]
    greatest = {}
    for backend in ("qnnpack", "tidl-tda4vm"):
        wrapped = edgeq.PTCFxModule(model, "WT8SYMP2_AT8SYMP2", backend, bias_calibration_factor=0.0)
        converted = wrapped.calibrate(batches()).convert()
        layers = [converted.module.get_submodule(name) for name in ("conv1", "conv2", "fc")]
        greatest[backend] = max(int(layer.bias.abs().max()) for layer in layers)
        fc = layers[-1]
        torch.testing.assert_close(fc.bias * fc.bias_scale, model.fc.bias.detach(), rtol=0, atol=float(fc.bias_scale))
        assert torch.equal(wrapped(image), converted(image))
    assert greatest["qnnpack"] > 2**15
    assert 2**13 < greatest["tidl-tda4vm"] < 2**15


@pytest.mark.parametrize("rounding", Rounding)
def test_the_backends_rounding_is_that_of_every_activation(rounding):
    backend = {"name": "mine", "rounding": rounding.value}
    rules = [{"name": "fc", "activation": {"bits": 7}}]
    preset = {"inherits": "WC8_AT8", "rules": rules, "edges": "WC8SYMP2_AT8SYMP2"}
    wrapped = edgeq.PTCFxModule(network("residual"), preset, backend).calibrate(batches())
    assert {tensor.spec.rounding for tensor in wrapped.module.quantizers()} == {rounding}
    quantizer = wrapped.module.quantizers()[0]
    x = (torch.arange(-6, 7) + 0.5) * quantizer.scale
    lower = torch.arange(-6, 7)
    expected = {
        Rounding.HALF_EVEN: lower + lower % 2,
        Rounding.HALF_UP: lower + 1,
        Rounding.HALF_AWAY: lower + (lower >= 0),
        Rounding.FLOOR: lower,
    }[rounding]
    assert torch.equal(quantizer(x), expected * quantizer.scale)
