"""Scales found together are the scales found one by one."""

import copy

import pytest
import torch
from torch import nn

import edgeq
from edgeq.modules.live_scales import together
from tests.networks import batches, network


def trained(wrapped, grouped):
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
    torch.manual_seed(0)
    wrapped.train()
    for batch in batches(4):
        if not grouped:
            wrapped.module._live_scales = []
        loss = wrapped(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return wrapped.state_dict()


@pytest.mark.parametrize("preset", ["WC8_AT8", "WC8SYMP2_AT8SYMP2", "WC4_AT8", "WC4M4_AT8"])
@pytest.mark.parametrize("name", ["residual", "separable"])
def test_training_is_the_same_bit_for_bit(name, preset):
    model = network(name)
    with torch.no_grad():
        norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        norm.weight[0], norm.weight[1] = 0.0, -0.7
    wrapped = edgeq.QATFxModule(model, preset, total_epochs=20)
    found = trained(copy.deepcopy(wrapped), grouped=True)
    expected = trained(copy.deepcopy(wrapped), grouped=False)
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


def test_layers_are_grouped_only_while_their_norms_are_live():
    wrapped = edgeq.QATFxModule(network("separable"), "WC8_AT8", total_epochs=20).train()
    (group,) = wrapped.module._live_scales
    assert len(group.layers) == 4  # the classifier has no batch norm
    wrapped.eval()
    assert together(wrapped.module.quantized_layers()) == []


def test_a_parametrized_weight_is_left_alone_for_reading_it_has_effects():
    model = network("residual")
    nn.utils.parametrizations.spectral_norm(model.conv1)
    wrapped = edgeq.QATFxModule(model, "WC8_AT8", total_epochs=20).train()
    assert wrapped.module._live_scales == []  # one layer by itself gains nothing
