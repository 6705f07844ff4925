"""A preset that was saved is the one that is loaded."""

import pytest
from hypothesis import given, settings

import edgeq
from edgeq import QConfig, load_preset, save_preset
from edgeq.spec import Rule
from tests.test_presets import CALIBRATED, NAMES
from tests.test_strict import SPECS


@pytest.mark.parametrize("name", NAMES)
def test_a_file_holds_what_differs_from_a_plain_preset_and_no_more(name, tmp_path):
    save_preset(load_preset(name), tmp_path / "mine.toml")
    text = (tmp_path / "mine.toml").read_text()
    assert load_preset(tmp_path / "mine.toml") == load_preset(name)
    assert "rounding =" not in text
    assert ("bits = 4" in text) == name.startswith(("WC4", "W4", "WC2"))
    in_one_place = {"P2": 2, "TQT": 4}  # TQT leaves the edges fixed, with scales of their own
    assert text.count("power_of_two") == next((count for part, count in in_one_place.items() if part in name), 0)


@settings(deadline=None, max_examples=50)
@given(SPECS, SPECS)
def test_a_preset_with_any_specs_and_rules_comes_back_from_its_file(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("preset") / "mine.toml"
    first, second = (edgeq.TensorSpec(**{**vars(spec), "granularity": "tensor"}) for spec in (first, second))
    qconfig = QConfig(
        name='a "b"',
        activation=first,
        rules=(Rule(name="x", activation=second), Rule(pattern=r"a\.b", quantize=False)),
        edges=QConfig("edge", activation=second, rules=(Rule(type="conv", activation=first),)),
    )
    save_preset(qconfig, path)
    assert load_preset(path) == qconfig


FOR_LAYERS = [name for name in CALIBRATED if load_preset(name).edges is None]


@pytest.mark.parametrize("name", FOR_LAYERS)
@pytest.mark.parametrize("other", FOR_LAYERS)
def test_a_layers_preset_survives_a_file_whatever_the_others_is(name, other, tmp_path):
    qconfig = edgeq.QConfigMapping().set_global(name).set_module_name("fc", other).qconfig()
    save_preset(qconfig, tmp_path / "mixed.toml")
    assert load_preset(tmp_path / "mixed.toml") == qconfig
