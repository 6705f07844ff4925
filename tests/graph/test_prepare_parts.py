"""How parts come about: rules, what is left whole, example inputs, and parts where the whole cannot be captured."""

import itertools
import logging

import pytest
import torch
from torch import nn

import edgeq
from edgeq import QConfigMapping, SpecError
from edgeq.graph.prepare_parts import inputs_of
from tests.graph.parity import images
from tests.graph.parted import PARTS, Block, Head, Plain, data, detector
from tests.states import changed, snapshot


def layers(wrapped):
    """The bits of the weight of each quantized layer, by its path."""
    found = {}
    for path, part in wrapped.module.parts.items():
        for layer in part.quantized_layers():
            found[f"{path}.{layer.site.name}"] = layer.weight_quantizer.spec.bits
    return found


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
    preset = next(name for name in edgeq.preset_names() if _can(name, backend))
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
    pairs = itertools.product(edgeq.backend_names(), edgeq.preset_names())
    backend, preset = next(pair for pair in pairs if not _can(*reversed(pair)))
    good = next(name for name in edgeq.preset_names() if _can(name, backend))
    with pytest.raises(SpecError, match=f"The backend '{backend}' cannot run the preset '{preset}'"):
        edgeq.PTCFxModule(detector(), good, backend, submodules={"backbone": None, "head": preset})


# ---- what is left whole


def test_names_of_what_is_left_whole_are_those_of_the_whole():
    kept = edgeq.PTCFxModule(detector(), submodules=PARTS, untraced=["backbone.down"])
    assert set(layers(kept)) == {"backbone.stem.conv", "head.hidden.conv", "head.out"}
    of_nobody_here = edgeq.PTCFxModule(detector(), submodules=PARTS, untraced=["down", "out"])
    assert layers(of_nobody_here) == EIGHT
    by_class = edgeq.PTCFxModule(detector(), submodules=["head"], untraced=[Block])
    assert layers(by_class) == {"head.out": 8}


def test_a_part_cannot_be_left_whole():
    with pytest.raises(SpecError, match="untraced names 'head', which is to be quantized by itself"):
        edgeq.PTCFxModule(detector(), submodules=PARTS, untraced=["head"])


# ---- example inputs


class Called(nn.Module):
    """Parts whose forwards take all that a forward can take."""

    def __init__(self):
        super().__init__()
        self.many, self.named, self.none, self.mixed = (Many(kind) for kind in ("many", "named", "none", "mixed"))

    def forward(self, x):
        y = self.many(x, 2 * x) + self.named(scale=2.0, x=x) + self.none()
        return y + self.mixed(x, other=x) if y.sum() < 1e9 else y


class Many(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv, self.kind = nn.Conv2d(3, 3, 1), kind
        self.register_buffer("own", images(2, 3, 8, 8))

    def forward(self, *xs, x=None, scale=1.0, other=None):
        inputs = [value for value in (*xs, x, other) if value is not None] or [self.own]
        return self.conv(sum(inputs[1:], inputs[0])) * scale


def test_parts_are_captured_as_they_are_called_when_example_inputs_are_given():
    torch.manual_seed(0)
    model = Called().eval()
    found = inputs_of(model, ["many", "named", "none", "mixed"], images())
    assert [len(found["many"]), sorted(found["named"]), found["none"], sorted(found["mixed"])] == [
        2, ["scale", "x"], (), ["other", "xs"],
    ]  # fmt: skip
    wrapped = edgeq.PTCFxModule(model, submodules=["many", "named", "none"], example_inputs=images())
    wrapped.calibrate([images()])
    assert torch.equal(wrapped(images()), wrapped.convert()(images()))
    assert (wrapped(images()) - model(images())).norm() < 0.03 * model(images()).norm()


def test_example_inputs_that_do_not_fit_are_refused_and_change_nothing():
    model = detector().train()
    before = snapshot(model)
    with pytest.raises(SpecError, match=r"The model does not run on example_inputs, torch.float32 \(4, 5, 8, 8\)"):
        edgeq.PTCFxModule(model, submodules=PARTS, example_inputs=torch.rand(4, 5, 8, 8))
    with pytest.raises(SpecError, match="does not take example_inputs"):
        edgeq.PTCFxModule(model, submodules=PARTS, example_inputs=(1, 2, 3, 4))
    assert all(module.training for module in model.modules())
    assert [module for module in model.modules() if module._forward_pre_hooks] == []
    edgeq.PTCFxModule(model, submodules=PARTS, example_inputs=data()[0])
    assert changed(before, model) == []
    assert all(module.training for module in model.modules())


# ---- where the whole cannot be captured


class Fallen(nn.Module):
    """A decision by value, a list that is iterated, a part that is never called, and one that cannot be captured."""

    def __init__(self):
        super().__init__()
        self.steps = nn.Sequential(Block(3, 3), Block(3, 3))
        self.same, self.unused, self.odd = self.steps[0], Block(3, 3), Odd()

    def forward(self, x):
        for step in self.steps:
            x = step(x) if x.sum() < 1e9 else x
        return self.odd(x)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) if x.max() < 1e9 else x


def test_a_network_that_cannot_be_captured_is_quantized_in_the_largest_parts_that_are_called(caplog):
    torch.manual_seed(0)
    model = Fallen().eval()
    wrapped = edgeq.PTCFxModule(model, example_inputs=images()).calibrate([images()])
    assert list(wrapped.module.parts) == ["steps.0", "steps.1", "odd.conv"]
    told = [record for record in caplog.records if record.name.startswith("edgeq")]
    (record,) = [record for record in told if record.levelno == logging.WARNING]
    said = record.getMessage()
    assert said.startswith("Fallen stays in Python, in float, around these parts, which are quantized by themselves: "
                           "steps.0, steps.1, odd.conv. The model cannot be traced: ")  # fmt: skip
    assert "test_prepare_parts.py" in said
    assert "x = step(x) if x.sum() < 1e9 else x" in said
    assert torch.equal(wrapped.convert()(images()), wrapped(images()))
    table = wrapped.explain()
    assert table.startswith("steps.0 (Block)\nnode ")
    assert table.endswith("\n\nAll else of Fallen stays the Python that it is, in float.")
    assert table.count("\nodd.conv (Conv2d)\n") == 1


def test_without_example_inputs_it_is_said_that_they_would_help(caplog):
    wrapped = edgeq.PTCFxModule(detector())
    assert list(wrapped.module.parts) == ["entry", "backbone", "head"]
    assert "entry, backbone, head. Give example_inputs, so that only such are chosen as are called. The" in caplog.text


def test_rules_and_what_is_left_whole_hold_for_the_parts_that_are_chosen():
    mapping = (
        QConfigMapping().set_global("WC8_AT8").set_module_name("head", None).set_module_name("backbone.stem", "WC4_AT8")
    )
    wrapped = edgeq.PTCFxModule(detector(), mapping.qconfig(), example_inputs=data()[0])
    assert layers(wrapped) == {"entry.conv2d": 8, "backbone.stem.conv": 4, "backbone.down.conv": 8}
    kept = edgeq.PTCFxModule(detector(), example_inputs=data()[0], untraced=["backbone.down", "head"])
    assert layers(kept) == {"entry.conv2d": 8, "backbone.stem.conv": 8}
    kept = edgeq.PTCFxModule(detector(), example_inputs=data()[0], untraced=[Block])
    assert layers(kept) == {"entry.conv2d": 8, "head.out": 8}


def test_a_network_of_which_no_part_can_be_captured_is_refused_with_its_own_reason():
    with pytest.raises(edgeq.TraceError, match=r"if x.sum\(\) < 1e9") as error:
        edgeq.PTCFxModule(Hopeless(), example_inputs=images())
    assert "in Hopeless" in str(error.value)


class Hopeless(nn.Module):
    """Its own weight, and a decision by value."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))
        self.function = nn.functional.conv2d

    def forward(self, x):
        if x.sum() < 1e9:
            return self.function(x, self.weight)
        return self.function(x)


def test_rewrites_are_those_that_are_wanted_in_every_part():
    def changes(**options):
        parts = edgeq.PTCFxModule(detector(Plain), submodules=PARTS, **options).module.parts
        return {path: "Dropout -> nothing" in str(part.changes) for path, part in parts.items()}

    assert changes() == {"backbone": False, "head": True}
    assert changes(rewrites={"identity_removal": False}) == {"backbone": False, "head": False}
