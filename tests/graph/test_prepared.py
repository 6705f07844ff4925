"""The modes of a prepared network, and what a forward pass in each may change."""

import copy

import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import CalibrationError
from edgeq.phase import Phase
from tests.graph.parity import images
from tests.graph.random_networks import RandomNetwork
from tests.networks import NETWORKS, batches, network


def state(wrapped):
    return copy.deepcopy(wrapped.state_dict())


def same(one, other):
    return [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.mark.parametrize("make", [edgeq.PTCFxModule, lambda m: edgeq.QATFxModule(m, total_epochs=6)])
@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_changes_nothing(name, make):
    wrapped = make(network(name).train()).train()
    wrapped(batches(1)[0])
    wrapped.eval()
    before = state(wrapped)
    first = wrapped(batches(1, seed=1)[0])
    wrapped(batches(1, seed=2)[0] * 100)
    assert same(before, state(wrapped))
    assert torch.equal(wrapped(batches(1, seed=1)[0]), first)


@pytest.mark.parametrize("mode", [True, False])
def test_run_float_is_the_float_network_and_leaves_modes_and_state(mode):
    model = network("residual")
    wrapped = edgeq.QATFxModule(copy.deepcopy(model), total_epochs=6).train()
    wrapped(batches(1)[0])
    wrapped.train(mode)
    before, modes = state(wrapped), [module.training for module in wrapped.modules()]
    phases = [module.phase for module in wrapped.modules() if hasattr(module, "phase")]
    model.load_state_dict(wrapped.module.state_dict(), strict=False)
    x = batches(1, seed=1)[0]
    with torch.no_grad():
        assert torch.allclose(wrapped.module.run_float(x), model.eval()(x), atol=1e-5)
    assert same(before, state(wrapped))
    assert [module.training for module in wrapped.modules()] == modes
    assert [module.phase for module in wrapped.modules() if hasattr(module, "phase")] == phases


def test_the_phases_of_a_training():
    wrapped = edgeq.QATFxModule(network("residual").train(), total_epochs=8).train()  # norms 3 epochs, ranges 5
    layer = wrapped.module.quantized_layers()[0]
    found = []
    for _ in range(7):
        wrapped.train()
        found.append((layer.phase, layer.site.norm.training))
        wrapped(batches(1)[0])
    assert found == [(Phase.ADAPT, True)] * 3 + [(Phase.ADAPT, False)] * 2 + [(Phase.QUANTIZE, False)] * 2
    wrapped.eval()
    assert (layer.phase, layer.site.norm.training) == (Phase.QUANTIZE, False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_an_error_that_names_the_tensor(value):
    class Breaking(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, factor):
            return self.second(self.first(x) * factor)

    wrapped = edgeq.PTCFxModule(Breaking(), "WC8_AT8", bias_calibration_factor=0).train()
    wrapped(images(4, 4), torch.tensor(value))
    with pytest.raises(CalibrationError, match=r"The tensor '(factor|mul)' held NaN or infinity during calibration"):
        wrapped.eval()


@pytest.mark.parametrize("seed", range(6))
def test_calibration_keeps_no_gradients_and_moves_nothing_but_biases(seed):
    model = RandomNetwork(seed).train()
    before = copy.deepcopy(model.state_dict())
    wrapped = edgeq.PTCFxModule(model).train()
    output = wrapped(images(seed=seed))
    assert not any(value.requires_grad for value in (*output["maps"], output["scores"]))
    wrapped.eval()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert all(key.endswith("bias") for key in changed)


def test_calibration_in_float_gives_the_float_outputs():
    model, x = network("separable"), batches(1)[0]
    wrapped = edgeq.PTCFxModule(model).train()
    with torch.no_grad():
        assert torch.allclose(wrapped(x), model(x), atol=1e-5)
