"""A network calibrated with each observer, for activations and for weights, at 8 and 4 bits."""

import pytest
import torch

import edgeq
from edgeq.observers.registry import OBSERVERS
from tests.networks import batches, network

BARS = {8: 39, 4: 20}  # decibels of the logits
OPTIONS = [
    *((name, {}) for name in OBSERVERS if name != "deviations"),
    ("deviations", {"count": 6.0}),
    ("squared_error", {"power": 2.4}),
    ("moving_squared_error", {"power": 2.4}),
    ("moving_average", {"percentile": 0.1}),
    *(("power_of_two_search", {"over": over}) for over in ("mean", "median", "maximum")),
]


def ratio(model, preset):
    """Signal to error of the logits, in decibels."""
    data = batches()
    wrapped = edgeq.PTCFxModule(model, preset).calibrate(data).eval()
    with torch.no_grad():
        exact, found = (torch.cat([net(x) for x in data]) for net in (model.eval(), wrapped))
    return (10 * torch.log10(exact.square().sum() / (exact - found).square().sum())).item()


def preset(name, options, bits, kind):
    observer = {"observer": {"name": name, **options}, "bits": bits}
    if name == "power_of_two_search":
        observer["scale"] = "power_of_two"
    return {"inherits": "MSA_WC8_AT8", kind: observer}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_activations(name, options, bits):
    assert ratio(network("residual"), preset(name, options, bits, "activation")) > BARS[bits]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("name", "options"), [pair for pair in OPTIONS if OBSERVERS[pair[0]].for_weights], ids=str)
def test_weights(name, options, bits):
    assert ratio(network("residual"), preset(name, options, bits, "weight")) > BARS[bits]
