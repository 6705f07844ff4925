"""What users see of a network with parts: the attributes, methods and children of their own classes."""

import copy

import pytest
import torch
from torch import nn

import edgeq
from tests.graph.parity import images
from tests.graph.parted import Block, calibrated, data, detector


def test_attributes_and_methods_of_the_model_and_of_a_part_are_there_before_and_after_the_conversion():
    wrapped = calibrated()
    converted = wrapped.convert()
    for module in (wrapped.module, converted.module, copy.deepcopy(converted).module):
        assert module.threshold == -1e9
        assert torch.equal(module.predict(data()[0]), wrapped(data()[0]).argmax(1))
        assert module.backbone.channels == 8
        assert module.backbone.describe("stem") == "stem: 8 channels"
        assert torch.equal(module.head.prior, detector().head.prior)
        assert module.head.mode() is False
        with pytest.raises(AttributeError, match="has no attribute 'thresold'"):
            module.thresold  # noqa: B018
        with pytest.raises(AttributeError, match="has no attribute 'chanels'"):
            module.backbone.chanels  # noqa: B018


def test_a_buffer_of_a_part_that_others_read_moves_and_is_saved_with_it():
    converted = calibrated().convert()
    assert "module.head.prior" in converted.state_dict()
    assert converted.double().module.head.prior.dtype is torch.float64


def test_an_attribute_that_is_set_is_what_the_forward_sees():
    wrapped = calibrated()
    for module in (wrapped, wrapped.convert()):
        assert module(data()[0]).abs().max() > 0
        module.module.threshold = 1e9
        assert module.module.face.threshold == 1e9
        assert module(data()[0]).abs().max() == 0
        module.module.entry = nn.Conv2d(3, 3, 1)
        assert module.module.face.entry is module.module.entry
    assert detector().threshold == -1e9


class Crowded(nn.Module):
    """Children whose names are words of edgeq's own."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([Block(3, 3), Block(3, 3)])
        self.face, self.schedule, self.paths, self.backend = Block(3, 3), Block(3, 3), Block(3, 3), nn.Conv2d(3, 2, 1)
        self.finish = nn.ModuleDict({"run": Block(3, 3)})

    def forward(self, x):
        for part in (*self.parts, self.face, self.schedule, self.paths, self.finish["run"]):
            x = part(x)
        return self.backend(x) if x.sum() < 1e9 else x


@pytest.mark.parametrize(
    "submodules", [["parts.0", "parts.1"], ["parts"], ["face", "schedule", "paths", "backend"], ["finish"], [Block]]
)
def test_children_may_be_called_as_edgeq_calls_what_is_its_own(submodules):
    torch.manual_seed(0)
    model = Crowded().eval()
    wrapped = edgeq.PTCFxModule(model, submodules=submodules).calibrate([images()])
    assert set(model.state_dict()) <= set(wrapped.module.state_dict())
    assert torch.equal(wrapped.convert()(images()), wrapped(images()))
    assert 0 < (wrapped(images()) - model(images())).norm() < 0.05 * model(images()).norm()


class Hooked(nn.Module):
    """Keeps what passes, in hooks and in a list, as users who look at features do."""

    def __init__(self):
        super().__init__()
        self.body, self.seen = Block(3, 3), []
        self.register_forward_hook(lambda module, args, output: output + 1)

    def forward(self, x):
        y = self.body(x)
        self.seen.append(tuple(y.shape))
        return y if len(self.seen) > 0 else x


def test_hooks_and_lists_of_the_model_are_those_of_the_quantized_one():
    wrapped = edgeq.PTCFxModule(Hooked().eval(), submodules=["body"]).calibrate([images()])
    assert wrapped(images()).min() >= 1
    assert wrapped.module.seen == [(2, 3, 8, 8)] * 2
    assert wrapped.convert()(images()).min() >= 1


def test_attributes_of_a_part_that_edgeq_has_too_are_told(caplog):
    class Counting(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(4, 3), nn.ReLU())
            self.count, self.width = 3, 4

        def run(self, x):
            return self(x)

    edgeq.PTCFxModule(nn.ModuleDict({"encoder": Counting(), "other": nn.Linear(4, 3)}), submodules=["encoder", "other"])
    assert [record.message for record in caplog.records] == [
        "Code around the part 'encoder' finds edgeq's own attributes by these names: count, run."
    ]
