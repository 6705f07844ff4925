"""A preset that cannot be used is refused with the place, the value and the way out."""

from pathlib import Path

import pytest

from edgeq import SpecError, load_preset
from tests.test_presets import written


def refusal(source):
    with pytest.raises(SpecError) as error:
        load_preset(source)
    return str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("WC8_AT9", "Unknown preset 'WC8_AT9'. Did you mean 'WC8_AT8'? (Known: DEFAULT, MSA_"),
        ("wc4m4_at8", "Unknown preset 'wc4m4_at8'. Did you mean 'WC4M4_AT8'?"),
        ("", "Unknown preset ''. Known: DEFAULT,"),
        ("WC8_AT8+", "Unknown preset ''. Known: DEFAULT,"),
        ("A+B+C", "qconfig_type 'A+B+C' joins 3 presets; 'A+B' joins two."),
        (8, "qconfig_type must be a name, a path, a dict or a QConfig, got 8."),
        ({"wieght": {}}, "Unknown key 'wieght' in qconfig_type. Did you mean 'weight'?"),
        ({"weight": {"bitwidth": 4}}, "Unknown key 'bitwidth' in qconfig_type.weight. edgeq calls it bits."),
        ({"weight": {"bits": "4"}}, "qconfig_type.weight.bits must be int, got '4'."),
        ({"weight": {"bits": 1}}, "qconfig_type.weight.bits must lie in 2..16, got 1."),
        ({"weight": {"symmetric": False}}, "qconfig_type: The weight must be symmetric and signed"),
        ({"weight": 4}, "qconfig_type.weight must be a table, got 4."),
        ({"activation": {"scale": "po2"}}, "qconfig_type.activation.scale is 'po2'. Known: free, power_of_two."),
        ({"activation": {"observer": "hist"}}, "qconfig_type.activation: observer: Unknown observer 'hist'."),
        ({"bias": {"bit": 16}}, "Unknown key 'bit' in qconfig_type.bias. edgeq calls it bits."),
        ({"recovery": "compensated_rounding"}, "qconfig_type.recovery must be a list, got 'compensated_rounding'."),
        ({"rules": {"type": "conv"}}, "qconfig_type.rules must be a list of tables, got {'type': 'conv'}."),
        ({"rules": ["conv"]}, "qconfig_type.rules[0] must be a table, got 'conv'."),
        ({"rules": [{"layer": "conv"}]}, "Unknown key 'layer' in qconfig_type.rules[0]."),
        ({"rules": [{"type": "a"}, {"weight": {"bits": 8}}]}, "qconfig_type.rules[1]: A rule needs exactly one of"),
        ({"rules": [{"type": "a", "weight": {"bit": 8}}]}, "Unknown key 'bit' in qconfig_type.rules[0].weight."),
        ({"inherits": "WC9"}, "qconfig_type.inherits: Unknown preset 'WC9'. "),
        ({"edges": 5}, "qconfig_type.edges: qconfig_type must be a name, a path, a dict or a QConfig, got 5."),
    ],
)
def test_a_refusal_names_the_place_the_value_and_the_way_out(source, message):
    assert refusal(source).startswith(message)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert (
        refusal(tmp_path / "no.toml")
        == f"The preset file '{tmp_path / 'no.toml'}' cannot be read: No such file or directory."
    )
    assert refusal(Path(tmp_path)) == f"The preset file '{tmp_path}' cannot be read: Is a directory."
    broken = written(tmp_path, "broken.toml", "weight = [\n")
    assert refusal(str(broken)).startswith(f"The preset file '{broken}' is no TOML: ")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert refusal(binary).startswith(f"The preset file '{binary}' is no TOML: ")


def test_a_message_about_a_file_names_the_file(tmp_path):
    path = written(tmp_path, "mine.toml", "[weight]\nbitz = 4\n")
    assert refusal(path).startswith("Unknown key 'bitz' in mine.toml.weight. Did you mean 'bits'?")


def test_a_circle_of_files_is_refused(tmp_path):
    written(tmp_path, "a.toml", 'inherits = "b.toml"\n')
    path = written(tmp_path, "b.toml", 'inherits = "a.toml"\n')
    message = refusal(path)
    assert message.startswith("b.toml.inherits: a.toml.inherits: The preset file ")
    assert message.endswith("b.toml' inherits, by way of others or directly, from itself.")
