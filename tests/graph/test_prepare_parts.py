"""How parts come about: rules, what is left whole, example inputs, and parts where the whole cannot be captured."""

import logging

import pytest
import torch
from torch import nn

import edgeq
from edgeq import QConfigMapping, SpecError
from edgeq.graph.prepare_parts import inputs_of
from tests.graph.parity import images, relative_error
from tests.graph.parted import PARTS, Block, Plain, data, detector, layers
from tests.states import changed, snapshot

EIGHT = {"backbone.stem.conv": 8, "backbone.down.conv": 8, "head.hidden.conv": 8, "head.out": 8}


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


# ---- parts that write into what they are given


class Writing(nn.Module):
    """Its first operation works in place on its input."""

    def __init__(self, write):
        super().__init__()
        self.conv, self.act, self.write = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), write

    def forward(self, x):
        return self.conv(self.write(self, x))


class Reading(nn.Module):
    def __init__(self, write, reads):
        super().__init__()
        self.first, self.part, self.reads = nn.Conv2d(3, 3, 1), Writing(write), reads

    def forward(self, x):
        x = self.first(x)
        view = x.flatten(1)
        y = self.part(x)
        return y.flatten(1) + view if self.reads else y


def added(m, x):
    x += 1
    return x


WRITES = {"module": lambda m, x: m.act(x), "method": lambda m, x: x.relu_(), "operator": added}


@pytest.mark.parametrize("write", WRITES)
def test_a_part_that_writes_into_its_input_is_told_and_refused_where_it_is_seen_to_matter(write, caplog):
    torch.manual_seed(0)
    model = Reading(WRITES[write], reads=True)
    edgeq.PTCFxModule(model, submodules=["part"])
    (record,) = caplog.records
    assert record.getMessage().startswith("The part 'part' writes in place into its input x; quantized, it does not.")
    with pytest.raises(
        edgeq.TraceError, match=r"^'part' writes in place into its input 'x', which 'add' \(.*\) reads later"
    ):
        edgeq.PTCFxModule(model, standalone=["part"])
    caplog.clear()
    model.reads = False
    wrapped = edgeq.PTCFxModule(model, standalone=["part"]).calibrate([images()])
    assert caplog.records == []
    assert relative_error(wrapped(images()), model(images())) < 0.03


def test_a_part_that_works_in_place_on_its_own_tensors_is_not_told(caplog):
    edgeq.PTCFxModule(detector(), submodules=PARTS)
    assert caplog.records == []
