"""Rules of presets, edges and backends in networks with parts."""

import itertools

import pytest
import torch
from torch import nn

import edgeq
from edgeq import QConfigMapping, SpecError
from tests.graph.parted import PARTS, Block, Head, data, detector, layers
from tests.test_presets import CALIBRATED


def mapped(*entries, **options):
    """A network with its parts under a mapping: DEFAULT, and what the setters are called with."""
    mapping = QConfigMapping().set_global("DEFAULT")
    for setter, *arguments in entries:
        getattr(mapping, f"set_{setter}")(*arguments)
    return edgeq.PTCFxModule(detector(), mapping.qconfig(), **({"submodules": PARTS} | options))


EIGHT = {"backbone.stem.conv": 8, "backbone.down.conv": 8, "head.hidden.conv": 8, "head.out": 8}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (("module_name", "head.out", "WC4_AT8"), {"head.out": 4}),
        (("module_name", "head", "WC4_AT8"), {"head.out": 4, "head.hidden.conv": 4}),
        (("module_name", "backbone.stem", None), {"backbone.stem.conv": None}),
        (("module_name_regex", r"head\..*", "WC4_AT8"), {"head.out": 4, "head.hidden.conv": 4}),
        (("module_name_regex", r".*\.conv", "WC4_AT8"), dict.fromkeys(list(EIGHT)[:3], 4)),
        (("object_type", Block, "WC4_AT8"), dict.fromkeys(list(EIGHT)[:3], 4)),
        (("object_type", Head, "WC4_AT8"), {"head.out": 4, "head.hidden.conv": 4}),
        (("object_type", nn.Conv2d, "WC4_AT8", "head"), {"head.out": 4, "head.hidden.conv": 4}),
        (("object_type", nn.Conv2d, "WC4_AT8", ""), dict.fromkeys(EIGHT, 4)),
        (("module_name_object_type_order", "backbone.stem", nn.Conv2d, 0, "WC4_AT8"), {"backbone.stem.conv": 4}),
        (("module_name_object_type_order", "head", nn.Conv2d, 0, "WC4_AT8"), {"head.out": 4}),
    ],
)
def test_rules_reach_into_parts_by_the_names_of_the_whole(rule, expected):
    found = {path: bits for path, bits in {**EIGHT, **expected}.items() if bits is not None}
    assert layers(mapped(rule)) == found


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("module_name", "entry", "WC4_AT8"), "The rule for 'entry' {} none of the parts that are quantized"),
        (("module_name", "had", None), "The rule for 'had' {} none of the parts that are quantized: backbone, head."),
        (("module_name_object_type_order", "", nn.Conv2d, 0, "WC4_AT8"), "The rule for 'Conv2d' in '', number 0 {}"),
        (("module_name", "head.outt", "WC4_AT8"), "In the part 'head': The rule for 'head.outt' fits no layer"),
        (("object_type", nn.Linear, "WC4_AT8", "head"), "In the part 'head': The rule for 'Linear' in 'head'"),
        (("module_name_object_type_order", "head", nn.Conv2d, 1, None), "In the part 'head': The rule for 'Conv2d' in"),
    ],
)  # fmt: skip
def test_a_rule_that_reaches_nothing_is_refused(rule, message):
    with pytest.raises(SpecError) as error:
        mapped(rule)
    assert str(error.value).startswith(message.format("lies in"))


def test_a_rule_that_leaves_in_float_what_is_no_part_holds_by_itself():
    assert layers(mapped(("module_name", "entry", None))) == EIGHT


def test_a_rule_for_more_than_one_part_need_not_fit_all_of_them():
    assert layers(mapped(("object_type", nn.Dropout, None, ""))) == EIGHT


def test_a_rule_of_one_parts_own_preset_is_not_for_another_part():
    own = QConfigMapping().set_global("DEFAULT").set_module_name("head.out", "WC4_AT8").qconfig()
    assert layers(mapped(submodules={"backbone": None, "head": own})) == {**EIGHT, "head.out": 4}
    with pytest.raises(
        SpecError, match=r"The rule for 'head.out' lies in none of the parts that are quantized: backbone\."
    ):
        mapped(submodules={"backbone": own, "head": None})


def test_the_edges_of_a_mixed_preset_are_those_of_each_part():
    wrapped = edgeq.PTCFxModule(detector(), "WC4_AT8+WC8_AT8", submodules=PARTS)
    assert layers(wrapped) == {**dict.fromkeys(EIGHT, 4), "backbone.stem.conv": 8, "head.hidden.conv": 8}


@pytest.mark.parametrize("backend", edgeq.backend_names())
def test_a_backend_holds_for_all_parts(backend):
    preset = next(name for name in CALIBRATED if _can(name, backend))
    wrapped = edgeq.PTCFxModule(detector(), preset, backend, submodules=PARTS).calibrate(data())
    assert {part.backend.name for part in wrapped.module.parts.values()} == {backend}
    assert torch.equal(wrapped(data()[0]), wrapped.convert()(data()[0]))


def _can(preset, backend):
    try:
        edgeq.PTCFxModule(nn.Conv2d(3, 3, 1), preset, backend)
    except SpecError:
        return False
    return True


def test_a_preset_that_the_backend_cannot_run_is_refused_for_one_part_too():
    pairs = itertools.product(edgeq.backend_names(), CALIBRATED)
    backend, preset = next(pair for pair in pairs if not _can(*reversed(pair)))
    good = next(name for name in CALIBRATED if _can(name, backend))
    with pytest.raises(SpecError, match=f"The backend '{backend}' cannot run the preset '{preset}'"):
        edgeq.PTCFxModule(detector(), good, backend, submodules={"backbone": None, "head": preset})
