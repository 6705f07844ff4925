"""AdaRound on small networks: what it gains, and what it never does."""

import pytest
import torch

from tests.networks import NETWORKS
from tests.recovery.learning import DATA, QUICK, calibrated, changed
from tests.states import snapshot


@pytest.mark.parametrize("name", NETWORKS)
def test_codes_alone_change_by_one_step_at_the_most_and_the_network_gains(name):
    model = calibrated(name, {"inherits": "WC4_AT8", "recovery": []})
    before = snapshot(model)
    (step,) = model.recover(DATA, [("adaround", QUICK["adaround"])]).steps
    assert step.kept
    assert step.gain > 1.0
    assert changed(before, snapshot(model)) == {"offset"}
    offsets = [layer.weight_quantizer.offset for layer in model.module.quantized_layers()]
    assert max(int(offset.abs().max()) for offset in offsets) == 1
    assert sum(map(torch.count_nonzero, offsets)) > 20
    with torch.no_grad():
        assert torch.equal(model(DATA[0]), model.convert()(DATA[0]))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_codes_stay_within_their_range(bits):
    preset = {"inherits": "WC8_AT8", "weight": {"bits": bits, "observer": "squared_error"}}
    model = calibrated("separable", preset)
    model.recover(DATA, [("adaround", QUICK["adaround"])])
    for layer in model.module.quantized_layers():
        codes = layer.weight_quantizer.codes(layer.folded(layer.weight, layer.bias)[0])
        assert -(2 ** (bits - 1)) <= codes.min() < codes.max() < 2 ** (bits - 1)
    with torch.no_grad():
        assert torch.equal(model(DATA[0]), model.convert()(DATA[0]))
