"""Which submodules are meant by names and classes, under which presets."""

import pytest
import torch
from torch import nn

import edgeq
from edgeq import SpecError
from tests.graph.parity import images
from tests.graph.parted import Block, Detector, Head, detector

STAGES = ("backbone.stem", "backbone.down")


def wrapped(submodules, model=None, argument="submodules", **options):
    return edgeq.PTCFxModule(detector() if model is None else model, **{argument: submodules}, **options)


def presets(submodules, model=None):
    return {path: part.qconfig.name for path, part in wrapped(submodules, model).module.parts.items()}


class Lists(nn.Module):
    """Stages in lists in a list, and branches in a dict; none of these can be called."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            [nn.ModuleList([Block(3, 3), nn.ReLU()]), nn.ModuleList([Block(3, 3), Block(3, 3)])]
        )
        self.branches = nn.ModuleDict({"one": nn.Conv2d(3, 2, 1), "two": nn.Conv2d(3, 2, 1), "none": nn.BatchNorm2d(3)})

    def forward(self, x):
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.branches["one"](x) + self.branches["two"](self.branches["none"](x))


class Inner(Block):
    """A block of another class."""


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.outer = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.ReLU())
        self.last = Inner(3, 3)

    def forward(self, x):
        return self.last(self.outer(x))


class Twice(nn.Module):
    """One block at three paths."""

    def __init__(self):
        super().__init__()
        self.a = Block(3, 3)
        self.b, self.c = self.a, nn.Sequential(self.a)

    def forward(self, x):
        return self.b(self.a(x)) + self.c(x)


@pytest.mark.parametrize(
    ("submodules", "expected"),
    [
        (["head"], {"head": "DEFAULT"}),
        (["head", "backbone"], {"head": "DEFAULT", "backbone": "DEFAULT"}),
        ({"backbone": None, "head": "WC4_AT8"}, {"backbone": "DEFAULT", "head": "WC4_AT8"}),
        ([Head], {"head": "DEFAULT"}),
        ((name for name in ("head",)), {"head": "DEFAULT"}),
        ({Block: "WC4_AT8"}, dict.fromkeys(("backbone.stem", "backbone.down", "head.hidden"), "WC4_AT8")),
        ({Block: None, "head.hidden": "WC4_AT8"}, {**dict.fromkeys(STAGES, "DEFAULT"), "head.hidden": "WC4_AT8"}),
        ({"head.hidden": "WC4_AT8", Block: None}, {"head.hidden": "WC4_AT8", **dict.fromkeys(STAGES, "DEFAULT")}),
    ],
)  # fmt: skip
def test_names_and_classes_have_the_presets_that_are_given_with_them(submodules, expected):
    found = presets(submodules)
    assert found == expected
    assert list(found) == list(expected)  # in the order in which they were given


def test_none_stands_for_the_preset_of_the_wrapper():
    made = wrapped({"backbone": None, "head": "WC4_AT8"}, qconfig_type="WC8P2_AT8P2")
    assert [part.qconfig.name for part in made.module.parts.values()] == ["WC8P2_AT8P2", "WC4_AT8"]


def test_a_list_stands_for_its_items_and_for_those_of_lists_in_it_without_what_has_no_layers():
    assert list(presets(["stages"], Lists())) == ["stages.0.0", "stages.1.0", "stages.1.1"]
    assert list(presets(["branches"], Lists())) == ["branches.one", "branches.two"]
    assert presets({"stages": None, "stages.1": "WC4_AT8", "stages.1.1": "WC8P2_AT8P2"}, Lists()) == {
        "stages.0.0": "DEFAULT",
        "stages.1.0": "WC4_AT8",
        "stages.1.1": "WC8P2_AT8P2",
    }
    assert list(presets([nn.ModuleDict], Lists())) == ["branches.one", "branches.two"]


def test_of_nested_modules_of_a_class_the_outermost_are_meant_and_the_nearer_class_is_stronger():
    assert list(presets([nn.Sequential], Nested())) == ["outer"]
    assert presets({nn.Sequential: "WC4_AT8", Block: None, Inner: "WC8P2_AT8P2"}, Nested()) == {
        "outer": "WC4_AT8",
        "last": "WC8P2_AT8P2",
    }


@pytest.mark.parametrize("names", [["a"], ["b"], ["a", "b"], [Block], ["c.0"]])
def test_a_submodule_at_several_paths_is_one_part_by_whichever_of_its_names(names):
    torch.manual_seed(0)
    model = Twice().eval()
    made = wrapped(names, model).calibrate([images()])
    assert sorted(made.module.paths) == ["a", "b", "c.0"]
    assert list(made.module.parts) == [names[0] if isinstance(names[0], str) else "a"]
    assert made.module.get_submodule("a") is made.module.get_submodule("b") is made.module.get_submodule("c")[0]
    converted = made.convert()
    assert list(converted.module.parts) == list(made.module.parts)
    assert torch.equal(converted(images()), made(images()))
    assert (made(images()) - model(images())).norm() < 0.03 * model(images()).norm()


def test_items_that_have_nothing_to_quantize_are_refused_where_they_are_named():
    with pytest.raises(SpecError, match=r"^In the part 'head.hidden.act': ReLU has no layer that can be quantized"):
        wrapped(["backbone", "head.hidden.act"])
    with pytest.raises(
        SpecError, match=r"^There is no layer that can be quantized in any of these parts: drop, head.drop\."
    ):
        wrapped([nn.Dropout])


@pytest.mark.parametrize("argument", ["submodules", "standalone"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["bakbone"], "{} names 'bakbone', which the model does not have. Did you mean 'backbone'?"),
        (["backbone.stemm"], "{} names 'backbone.stemm', which the model does not have. Did you mean 'backbone.stem'?"),
        (["scores"], "{} names 'scores', which the model does not have. Known: backbone, backbone.down,"),
        ([""], "{} names '', which the model does not have."),
        (["backbone", "backbone.stem"], "{} names 'backbone.stem', which is inside of 'backbone': name one of them."),
        (["head.hidden", Head], "{} names 'head.hidden', which is inside of 'head': name one of them."),
        ([nn.LSTM], "No submodule of Detector is a LSTM, which {} has."),
        ([Detector], "No submodule of Detector is a Detector, which {} has."),
        ("head", "{} is a list of names and classes, or a dict from them, got 'head': write ['head']."),
        (Head, "{} is a list of names and classes, or a dict from them, got Head: write [Head]."),
        ([], "{} has no submodule in it: []."),
        ([3], "{} has a int in it: give names or classes of submodules."),
        ({"head": "WC8_AT9"}, "Unknown preset 'WC8_AT9'. Did you mean"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_way_out(argument, names, message):
    with pytest.raises(SpecError) as error:
        wrapped(names, argument=argument)
    assert str(error.value).startswith(message.format(argument))


def test_one_submodule_cannot_have_two_presets_or_be_a_part_of_itself():
    with pytest.raises(SpecError, match=r"^submodules has one module by two names and presets: 'a', 'b'\."):
        wrapped({"a": None, "b": "WC4_AT8"}, Twice())
    with pytest.raises(SpecError, match=r"^submodules names 'a', which is inside of 'c': name one of them\."):
        wrapped(["a", "c"], Twice())


def test_submodules_and_standalone_are_two_ways_of_which_one_is_chosen():
    with pytest.raises(
        SpecError, match=r"^submodules quantizes parts only, standalone parts beside all else: give one"
    ):
        edgeq.PTCFxModule(detector(), submodules=["head"], standalone=["backbone"])
