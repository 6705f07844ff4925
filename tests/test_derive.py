"""From a preset that a backend cannot run to the nearest that it can, with a list of what was changed."""

import pytest

import edgeq
from edgeq import derive, load_backend, load_preset
from edgeq.backends import settle
from tests.networks import batches, network
from tests.test_backends import BACKENDS, BROKEN
from tests.test_presets import CALIBRATED


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_derived_preset_runs_and_the_changes_are_those_that_the_rules_ask_for(name, backend):
    qconfig, changes = derive(name, backend)
    assert [change.split(":")[0] for change in changes] == BROKEN.get(backend, {}).get(name, "").split()
    assert settle(qconfig, load_backend(backend)).name == qconfig.name
    if changes:
        assert qconfig.name == f"{name} for {backend}"
    else:
        assert qconfig is load_preset(name)


def test_each_change_says_from_what_to_what():
    _, changes = derive("WC4_AT8", "tidl-tda4vm")
    assert changes == [
        "weight.bits: 4 -> 8",
        "weight.granularity: channel -> tensor",
        "weight.scale: free -> power_of_two",
        "activation.symmetric: False -> True",
        "activation.scale: free -> power_of_two",
    ]


def test_what_the_backend_allows_stays():
    qconfig, changes = derive("WC8SYMP2_AT8SYMP2R4", "tidl-tda4vm")
    assert changes == ["weight.granularity: channel -> tensor"]
    assert qconfig.activation == load_preset("WC8SYMP2_AT8SYMP2R4").activation


def test_rules_edges_and_bias_are_made_legal_too():
    source = {
        "inherits": "WT8SYMP2_AT8SYMP2",
        "bias": {"bits": 24},
        "rules": [
            {"type": "conv", "quantize": False},
            {"name": "fc", "weight": {"bits": 6}, "activation": {"bits": 7}},
        ],
        "edges": "WC8SYMP2_AT8SYMP2",
    }
    qconfig, changes = derive(source, "tidl-tda4vm")
    assert changes == [
        "bias.bits: 24 -> 16",
        "rules[1].weight.bits: 6 -> 8",
        "rules[1].activation.bits: 7 -> 8",
        "edges.weight.granularity: channel -> tensor",
    ]
    assert (qconfig.bias.bits, qconfig.rules[1].weight.bits, qconfig.edges.weight.granularity) == (16, 8, "tensor")
    assert qconfig.rules[0] == load_preset(source).rules[0]


@pytest.mark.parametrize(("bits", "nearest"), [(2, 4), (5, 4), (7, 8), (12, 8)])
def test_the_nearest_number_of_bits_is_taken(bits, nearest):
    assert derive({"weight": {"bits": bits}}, "tidl")[0].weight.bits == nearest


def test_a_network_runs_with_a_derived_preset():
    qconfig, _ = derive("WC4_AT8", "tidl-tda4vm")
    wrapped = edgeq.PTCFxModule(network("residual"), qconfig, "tidl-tda4vm").calibrate(batches())
    assert {layer.weight_quantizer.scale.dim() for layer in wrapped.module.quantized_layers()} == {0}
