"""Four ways to name a preset, inheritance and rules."""

import pytest

import edgeq
from edgeq import QConfig, load_preset, preset_names, save_preset
from edgeq.spec import Method, Rule
from tests.networks import network

NAMES = [
    "DEFAULT",
    "MSA_WC8P2_AT8P2",
    "MSA_WC8_AT8",
    "W4A4_APOT",
    "W4A4_DSQ",
    "W4A4_LSQ",
    "W4A4_LSQPLUS",
    "W4A4_PACT",
    "W4A4_QIL",
    "W4A8_LSQPLUS",
    "W8A8_LSQ",
    "W8A8_NNIE",
    "W8A8_TQT",
    "WC2_AT4",
    "WC4M4_AT8",
    "WC4_AT4",
    "WC4_AT8",
    "WC8P2_AT8P2",
    "WC8SYMP2_AT8SYMP2",
    "WC8SYMP2_AT8SYMP2R4",
    "WC8_AT8",
    "WT8SYMP2_AT8SYMP2",
]
CALIBRATED = [name for name in NAMES if not load_preset(name).learns]  # the others are for training


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_these_presets_come_with_edgeq():
    assert preset_names() == NAMES


def test_twelve_of_them_learn_nothing():
    assert len(CALIBRATED) == 12
    assert not any(name.startswith(("W4A", "W8A")) for name in CALIBRATED)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_knows_its_name_and_says_what_it_is_for(name):
    qconfig = load_preset(name)
    assert qconfig.name == name
    assert len(qconfig.summary) > 20
    assert len({load_preset(other).summary for other in NAMES}) == len(NAMES)


def test_nothing_is_the_default():
    assert load_preset(None) is load_preset("DEFAULT")


@pytest.mark.parametrize("name", NAMES)
def test_name_path_dict_and_qconfig_are_the_same(name, tmp_path):
    qconfig = load_preset(name)
    save_preset(qconfig, tmp_path / f"{name}.toml")
    assert load_preset(qconfig) is qconfig
    assert load_preset(tmp_path / f"{name}.toml") == qconfig
    assert load_preset(str(tmp_path / f"{name}.toml")) == qconfig
    assert load_preset({"inherits": name, "name": name, "summary": qconfig.summary}) == qconfig


@pytest.mark.parametrize("name", NAMES)
def test_a_wrapper_takes_any_way_to_name_a_preset(name, tmp_path):
    qconfig = load_preset(name)
    save_preset(qconfig, tmp_path / "mine.toml")
    ways = [name, qconfig, tmp_path / "mine.toml", str(tmp_path / "mine.toml"), {"inherits": name}]
    specs = [edgeq.QATFxModule(network("residual"), way, total_epochs=1).module.qconfig for way in ways]
    assert {(spec.weight, spec.activation, spec.recovery) for spec in specs} == {
        (qconfig.weight, qconfig.activation, qconfig.recovery)
    }


@pytest.mark.parametrize("second", NAMES)
def test_a_plus_b_is_a_with_b_at_the_edges(second):
    mixed = load_preset(f"WC4_AT8 + {second}")
    assert mixed.name == f"WC4_AT8+{second}"
    assert mixed.weight == load_preset("WC4_AT8").weight
    assert mixed.edges == load_preset(second)


def test_a_plus_b_takes_files_in_either_place_and_in_a_folder_with_a_plus(tmp_path):
    folder = tmp_path / "c++"
    folder.mkdir()
    save_preset(load_preset({"name": "mine", "weight": {"bits": 3}}), folder / "mine.toml")
    save_preset(load_preset({"name": "mine", "weight": {"bits": 3}}), tmp_path / "mine.toml")
    assert load_preset(str(folder / "mine.toml")).weight.bits == 3
    assert load_preset(f"WC8_AT8+{tmp_path / 'mine.toml'}").edges.weight.bits == 3
    assert load_preset(f"{tmp_path / 'mine.toml'}+WC8_AT8").edges.weight.bits == 8
    assert load_preset(f"{tmp_path / 'mine.toml'}+{tmp_path / 'mine.toml'}").name == "mine+mine"


# ---- inheritance


def test_a_preset_inherits_all_that_it_does_not_change(tmp_path):
    path = written(tmp_path, "mine.toml", 'inherits = "WC8SYMP2_AT8SYMP2R4"\n[activation]\nbits = 7\n')
    mine, base = load_preset(path), load_preset("WC8SYMP2_AT8SYMP2R4")
    assert (mine.name, mine.summary, mine.activation.bits) == ("mine", "", 7)
    assert mine.weight == base.weight
    assert (mine.activation.fixed_range, mine.activation.scale) == (4.0, base.activation.scale)


def test_an_option_alone_changes_the_inherited_algorithm_and_a_name_replaces_it_whole():
    base = load_preset("WC8_AT8").activation
    assert base.training_observer == Method("moving_average", (("momentum", 0.01), ("percentile", 0.01)))
    for change, expected in (
        ({"percentile": 0.5}, Method("moving_average", (("momentum", 0.01), ("percentile", 0.5)))),
        ({"name": "moving_average", "percentile": 0.5}, Method("moving_average", (("percentile", 0.5),))),
        ("moving_average", Method("moving_average")),
        ({"name": "minmax"}, Method("minmax")),
    ):
        mine = load_preset({"inherits": "WC8_AT8", "activation": {"training_observer": change}})
        assert mine.activation.training_observer == expected


def test_none_takes_back_an_inherited_number_and_inherited_edges():
    free = load_preset({"inherits": "WC8SYMP2_AT8SYMP2R4", "activation": {"fixed_range": "none"}})
    assert free.activation == load_preset("WC8SYMP2_AT8SYMP2").activation
    assert load_preset({"inherits": "WC4_AT8+WC8_AT8"}).edges.name == "WC8_AT8"
    assert load_preset({"inherits": "WC4_AT8+WC8_AT8", "edges": "none"}).edges is None


def test_lists_are_replaced_and_not_joined():
    assert load_preset("WC4M4_AT8").recovery == ("compensated_rounding",)
    assert load_preset({"inherits": "WC4M4_AT8", "recovery": []}).recovery == ()
    base = QConfig(rules=(Rule(type="conv", quantize=False),))
    assert load_preset({"inherits": base}).rules == base.rules
    assert load_preset({"inherits": base, "rules": []}).rules == ()


def test_files_name_each_other_by_where_they_are(tmp_path, monkeypatch):
    (tmp_path / "team").mkdir()
    written(tmp_path / "team", "base.toml", "[weight]\nbits = 5\n")
    path = written(tmp_path / "team", "mine.toml", 'inherits = "base.toml"\nedges = "base.toml"\n[weight]\nbits = 6\n')
    monkeypatch.chdir(tmp_path)
    mine = load_preset(path)
    assert (mine.weight.bits, mine.edges.weight.bits, mine.edges.name) == (6, 5, "base")


def test_the_dict_of_a_user_is_left_alone():
    source = {"inherits": "WC8_AT8", "weight": {"bits": 4}, "rules": [{"type": "linear", "weight": {"bits": 8}}]}
    copy = {"inherits": "WC8_AT8", "weight": {"bits": 4}, "rules": [{"type": "linear", "weight": {"bits": 8}}]}
    assert load_preset(source) == load_preset(source)
    assert source == copy


# ---- rules


def test_a_rules_specs_are_changes_of_the_presets_own():
    rules = [{"pattern": "head.*", "weight": {"bits": 8}}, {"name": "stem", "activation": {"symmetric": False}}]
    qconfig = load_preset({"inherits": "WC8SYMP2_AT8SYMP2", "weight": {"bits": 4}, "rules": rules})
    head, stem = qconfig.rules
    assert (head.weight.bits, head.weight.scale, head.activation) == (8, qconfig.weight.scale, None)
    assert (stem.activation.symmetric, stem.activation.scale, stem.weight) == (False, qconfig.activation.scale, None)
