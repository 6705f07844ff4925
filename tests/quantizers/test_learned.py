"""Networks whose quantizers learn, from their preset to the file, are networks like any other."""

import pytest
import torch

import edgeq
from edgeq.modules.layer import QuantizedLayer
from tests.graph.parity import assert_exact
from tests.networks import NETWORKS, batches, network
from tests.quantizers.learning import DATA, DEPLOYED, LEARNING, loss_of, optimizer_of, prepared, train_epoch, trained
from tests.states import changed, snapshot

presets = pytest.mark.parametrize("preset", LEARNING)
deployed = pytest.mark.parametrize("preset", DEPLOYED)
LSQ = "W4A4_LSQ"


@pytest.mark.parametrize("name", NETWORKS)
@presets
def test_a_network_learns_with_every_preset(preset, name):
    model = prepared(preset, name)
    optimizer = optimizer_of(model)
    losses = [train_epoch(model, optimizer, epoch) for epoch in range(4)]
    assert losses[-1] < 0.6 * losses[0]
    model.eval()
    with torch.no_grad():
        assert float(sum(loss_of(model, batch) for batch in DATA)) / len(DATA) < losses[0]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("epochs", [1, 4])  # ranges adapt; they stand still
@deployed
def test_what_is_evaluated_is_what_is_converted(preset, epochs, name):
    assert_exact(trained(preset, name, epochs), batches(1, seed=7)[0])


@deployed
def test_the_files_give_what_the_network_gives(preset, tmp_path):
    model, x = trained(preset), batches(1, seed=7)[0]
    with torch.no_grad():
        expected = model(x)
    for kind in ("qdq", "integer"):
        assert model.export(x, tmp_path / f"{kind}.onnx", format=kind).passed
    (plain, _) = model.verify(tmp_path / "integer.onnx", x)
    assert plain.unequal == 0
    assert torch.equal(model.convert()(x), expected)


@presets
def test_every_parameter_of_every_quantizer_gets_a_gradient_and_stays_the_same_object(preset):
    model = prepared(preset)
    before = model.quantizer_parameters()
    identities = [id(parameter) for parameter in before]
    optimizer = optimizer_of(model)
    for epoch in range(3):
        train_epoch(model, optimizer, epoch)
    after = model.eval().train().quantizer_parameters()
    assert [id(parameter) for parameter in after] == identities
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in after)
    assert {id(parameter) for parameter in model.module.quantizer_parameters()} == set(identities)
    assert set(identities) <= {id(parameter) for parameter in model.parameters()}


def test_without_learning_quantizers_there_are_no_parameters_for_them():
    assert prepared("WC8_AT8").quantizer_parameters() == []
    assert edgeq.PTCFxModule(network("residual"), LSQ).quantizer_parameters() == []


def test_a_calibration_takes_the_plain_quantizer_instead():
    plain = {"weight": {"quantizer": "fixed"}, "activation": {"quantizer": "fixed"}}
    mine = {"inherits": LSQ, "edges": "WC8_AT8"}
    one, other = (edgeq.PTCFxModule(network("residual"), preset).calibrate(DATA) for preset in (mine, mine | plain))
    assert changed(snapshot(one), other) == []


def test_gradients_are_for_the_whole_of_a_network_with_live_norms():
    """The gradient to a deployed scale s, of a weight that is rounded at s / f, is that of the deployed weight."""
    model = prepared(LSQ)
    model(DATA[0])
    layer = next(m for m in model.modules() if isinstance(m, QuantizedLayer) and m.site.norm is not None)
    quantizer = layer.weight_quantizer
    weight = layer.weight.detach()
    factor = layer.site.output_gain(layer.operation, weight).detach().reshape(-1, 1, 1, 1)
    upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    raw = layer._raw_weight(layer.weight)
    (found,) = torch.autograd.grad(raw, quantizer.scheme.step, upstream)
    (expected,) = torch.autograd.grad(quantizer(weight * factor), quantizer.scheme.step, upstream / factor)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert bool((found != 0).all())
