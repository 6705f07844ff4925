"""What a backend allows and refuses, and four ways to name one."""

import pytest

import edgeq
from edgeq import SpecError, backend_names, load_backend, load_preset
from edgeq.arithmetic import Rounding
from edgeq.backends import Allowed, BackendSpec, settle
from edgeq.toml import dumps
from tests.networks import network
from tests.test_presets import CALIBRATED

BACKENDS = ["onnxruntime", "qnnpack", "tidl", "tidl-tda4vm", "x86"]

# What a preset breaks of a backend's rules; nothing where it is not named.
FREE = "weight.granularity weight.scale", "activation.symmetric activation.scale"
LOW = f"weight.bits {FREE[0]} activation.bits {FREE[1]} " + " ".join(
    f"edges.{key}" for part in FREE for key in part.split()
)
BROKEN = {
    "tidl": {"WC2_AT4": "weight.bits activation.bits", "WC4_AT4": "activation.bits"},
    "tidl-tda4vm": {
        "WC2_AT4": LOW,
        "WC4_AT4": LOW,
        "DEFAULT": "weight.granularity weight.scale activation.symmetric activation.scale",
        "WC8_AT8": "weight.granularity weight.scale activation.symmetric activation.scale",
        "MSA_WC8_AT8": "weight.granularity weight.scale activation.symmetric activation.scale",
        "WC4_AT8": "weight.bits weight.granularity weight.scale activation.symmetric activation.scale",
        "WC4M4_AT8": "weight.bits weight.granularity weight.scale activation.symmetric activation.scale",
        "WC8P2_AT8P2": "weight.granularity activation.symmetric",
        "MSA_WC8P2_AT8P2": "weight.granularity activation.symmetric",
        "WC8SYMP2_AT8SYMP2": "weight.granularity",
        "WC8SYMP2_AT8SYMP2R4": "weight.granularity",
    },
}
FITTING = {
    "tidl": "WC8SYMP2_AT8SYMP2, WC8SYMP2_AT8SYMP2R4, WC8_AT8, WT8SYMP2_AT8SYMP2",  # and others
    "tidl-tda4vm": "Presets that it can run: W8A8_TQT, WT8SYMP2_AT8SYMP2",
}


def refusal(make):
    with pytest.raises(SpecError) as error:
        make()
    return str(error.value)


def test_five_backends_come_with_edgeq():
    assert backend_names() == BACKENDS
    assert [load_backend(name).name for name in BACKENDS] == BACKENDS


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_which_presets_a_backend_runs(backend, name):
    broken = BROKEN.get(backend, {}).get(name, "").split()
    assert [line.split(" is ")[0] for line in load_backend(backend).broken_rules(load_preset(name))] == broken
    if broken:
        message = refusal(lambda: edgeq.PTCFxModule(network("residual"), name, backend))
        assert message.startswith(f"The backend {backend!r} cannot run the preset {name!r}:\n  {broken[0]} is ")
        assert message.count("\n  ") == len(broken)
        assert f"{FITTING[backend]}. edgeq.derive(preset, backend)" in message
    else:
        prepared = edgeq.PTCFxModule(network("residual"), name, backend).module
        assert (prepared.backend.name, prepared.qconfig.name) == (backend, name)


def test_a_refusal_gives_the_rule_and_what_is_allowed():
    message = refusal(lambda: settle(load_preset("WC4_AT8"), load_backend("tidl-tda4vm")))
    assert "\n  weight.bits is 4; allowed: 8\n  weight.granularity is channel; allowed: tensor\n" in message
    assert "\n  activation.symmetric is False; allowed: True\n" in message


@pytest.mark.parametrize(
    ("preset", "line"),
    [
        ({"inherits": "WT8SYMP2_AT8SYMP2", "bias": {"bits": 24}}, "bias.bits is 24; at most 16"),
        ("WT8SYMP2_AT8SYMP2+WC8SYMP2_AT8SYMP2", "edges.weight.granularity is channel; allowed: tensor"),
        (
            {"inherits": "WT8SYMP2_AT8SYMP2", "rules": [{"type": "linear"}, {"name": "fc", "weight": {"bits": 4}}]},
            "rules[1].weight.bits is 4; allowed: 8",
        ),
        (
            {"inherits": "WT8SYMP2_AT8SYMP2", "rules": [{"name": "fc", "activation": {"symmetric": False}}]},
            "rules[0].activation.symmetric is False; allowed: True",
        ),
    ],
)
def test_rules_edges_and_biases_are_held_to_the_backends_rules_too(preset, line):
    assert load_backend("tidl-tda4vm").broken_rules(load_preset(preset)) == [line]


@pytest.mark.parametrize(("part", "bits"), [("weight", 9), ("weight", 16), ("activation", 9), ("activation", 16)])
@pytest.mark.parametrize("backend", [*BACKENDS, {"name": "mine"}])
def test_more_bits_than_a_byte_has_are_refused_and_not_cut_off(backend, part, bits):
    preset = {"inherits": "WT8SYMP2_AT8SYMP2", part: {"bits": bits}}
    message = refusal(lambda: edgeq.PTCFxModule(network("residual"), preset, backend))
    assert f"{part}.bits is {bits}; allowed: " in message


def test_a_backend_by_name_path_dict_and_spec_are_the_same(tmp_path):
    data = {"name": "mine", "weight": {"bits": [8]}, "bias": {"bits": 16}, "onnx": {"opset": 13}, "reduce_range": True}
    (tmp_path / "mine.toml").write_text(dumps({key: value for key, value in data.items() if key != "name"}))
    expected = load_backend(data)
    assert expected.weight == Allowed(bits=(8,))
    assert (expected.bias.bits, expected.onnx.opset, expected.reduce_range) == (16, 13, True)
    for source in (expected, tmp_path / "mine.toml", str(tmp_path / "mine.toml")):
        assert load_backend(source) == expected
        assert edgeq.PTCFxModule(network("residual"), "DEFAULT", source).module.backend == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("qnpack", "Unknown backend 'qnpack'. Did you mean 'qnnpack'? (Known: onnxruntime, qnnpack, tidl, tidl-"),
        ("fbgemm", "Unknown backend 'fbgemm'. Known: onnxruntime, qnnpack, tidl, tidl-tda4vm, x86."),
        (None, "Unknown backend None. Known: "),
        ({"wieght": {}}, "Unknown key 'wieght' in backend. Did you mean 'weight'?"),
        ({"weight": {"bit": [8]}}, "Unknown key 'bit' in backend.weight. edgeq calls it bits."),
        ({"weight": {"bits": 8}}, "backend.weight.bits must be a list, got 8."),
        ({"weight": {"scale": ["pow2"]}}, "backend.weight.scale[0] is 'pow2'. Known: free, power_of_two."),
        ({"activation": {"bits": [8, 16]}}, "backend.activation: bits is [8, 16]. Networks are converted with: 2, 3,"),
        ({"activation": {"bits": []}}, "backend.activation: bits is []. Networks are converted with: 2, 3,"),
        ({"bias": {"bits": 4}}, "backend.bias.bits must lie in 8..32, got 4."),
        ({"rounding": "up"}, "backend.rounding is 'up'. "),
        ({"onnx": {"opset": 9}}, "backend.onnx.opset must lie in 13..21, got 9."),
    ],
)
def test_a_backend_that_cannot_be_used_is_refused_with_the_way_out(source, message):
    assert refusal(lambda: load_backend(source)).startswith(message)


def test_a_backend_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    assert (
        refusal(lambda: load_backend(path)) == f"The backend file '{path}' cannot be read: No such file or directory."
    )
    path.write_text("reduce_rang = true\n")
    assert refusal(lambda: load_backend(path)).startswith("Unknown key 'reduce_rang' in mine.toml. Did you mean")


def test_a_backend_made_in_code_is_checked_like_a_file():
    assert BackendSpec(rounding="half_up").rounding is Rounding.HALF_UP
    assert refusal(lambda: BackendSpec(reduce_range=1)) == "BackendSpec.reduce_range must be bool, got 1."
