"""Networks with parts as files: one for all, or one for each part."""

import copy
from collections import namedtuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import fx, nn

import edgeq
from edgeq import ExportError
from tests.graph.parity import images
from tests.graph.parted import PARTS, Block, Plain, calibrated, data, detector
from tests.states import changed, snapshot

FILES = [
    {},
    {"format": "integer"},
    {"dynamic_batch": True},
    {"dynamic_batch": True, "opset_version": 18, "format": "integer"},
]


def run(path, *inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feeds)


@pytest.mark.parametrize("options", FILES, ids=str)
@pytest.mark.parametrize("preset", ["WC8_AT8", "WC8P2_AT8P2"])
def test_one_file_holds_the_parts_and_what_stands_around_them(options, preset, tmp_path):
    converted = calibrated(Plain, qconfig_type=preset).convert()
    result = converted.export(data()[0], tmp_path / "model.onnx", **options)
    assert result.passed
    names = [tensor.name for tensor in result.parity[0].tensors]
    assert names[:3] == ["backbone.x", "backbone.stem.conv", "backbone.down.conv"]
    assert len(names) == 3 + 2 * 3  # the head is called on two maps
    if preset == "WC8P2_AT8P2":
        assert all(tensor.unequal == 0 for parity in result.parity for tensor in parity.tensors)
    size = 6 if options.get("dynamic_batch") else 4
    x = images(size, 3, 16, 16, seed=4)
    (found,) = run(tmp_path / "model.onnx", x)
    expected = converted(x).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()
    assert all(parity.passed for parity in converted.verify(tmp_path / "model.onnx", x, batch=None))


def test_weights_are_in_the_file_once_and_in_integers(tmp_path):
    converted = calibrated(Plain).convert()
    result = converted.export(data()[0], tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    types = [tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4]
    assert sorted(types) == [onnx.TensorProto.FLOAT] + [onnx.TensorProto.INT8] * 4  # of the entry, and of four layers
    assert result.nodes["Conv"] == 1 + 2 + 2 * 2
    assert {entry.key: entry.value for entry in model.metadata_props}["edgeq.preset"] == "DEFAULT"


def test_each_part_is_judged_by_its_own_preset(tmp_path):
    parts = {"backbone": "WC8P2_AT8P2", "head": "WC8_AT8"}
    for submodules in (parts, dict(reversed(parts.items()))):
        converted = calibrated(Plain, submodules=submodules).convert()
        result = converted.export(data()[0], tmp_path / "model.onnx")
        shares = {tensor.name: tensor.tolerance.share for tensor in result.parity[0].tensors}
        assert shares["backbone.stem.conv"] == 0
        assert shares["head.out"] > 0
        assert result.passed
        model = onnx.load(tmp_path / "model.onnx")
        assert {entry.key: entry.value for entry in model.metadata_props}["edgeq.preset"] == ", ".join(
            submodules.values()
        )


class Inplace(nn.Module):
    """Works in place on what a part gives, without taking the result, and makes a constant."""

    def __init__(self):
        super().__init__()
        self.part, self.act = nn.Sequential(nn.Conv2d(3, 4, 1)), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.part(x)
        self.act(y)
        return y + torch.arange(4.0)[:, None, None] * torch.tensor([2.0])


def test_an_export_leaves_the_network_as_it_was(tmp_path):
    torch.manual_seed(0)
    model = Inplace()
    wrapped = edgeq.PTCFxModule(model, submodules=["part"]).calibrate([images()])
    converted = wrapped.convert()
    before, expected = snapshot(converted), converted(images())
    attributes = {*vars(converted.module.face)}
    for _ in range(2):
        assert wrapped.export(images(), tmp_path / "model.onnx").passed
        assert converted.export(images(), tmp_path / "model.onnx").passed
    assert torch.equal(converted(images()), expected)
    assert expected.min() >= 0
    assert converted.module.face.act.inplace
    assert {*vars(converted.module.face)} == attributes
    assert changed(before, converted) == []
    assert {*vars(model)} == {*vars(Inplace())}
    assert torch.equal(torch.from_numpy(run(tmp_path / "model.onnx", images())[0]), expected)


Pair = namedtuple("Pair", "first second")


class Structures(nn.Module):
    """A part that gives nested dicts, lists and tuples, and takes one of them, with defaults."""

    def __init__(self):
        super().__init__()
        self.maps, self.join, self.pair = Maps(), Join(), Two()

    def forward(self, x):
        found = self.maps(x)
        first, (second, third) = found["all"]
        one, two = self.pair(first)
        sums = [self.join(m, bias=1.0) for m in found["all"][1]]
        return {"sum": self.join(found["last"], other=first), "items": sums, "pair": one + two, "third": third + second}


class Maps(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.conv(x)
        return {"all": (y, [x, y]), "last": y}


class Join(Maps):
    def forward(self, x, scale=2.0, other=None, bias=0.0):
        y = self.conv(x) * scale + bias
        return y if other is None else y + other


class Two(Maps):
    def forward(self, x):
        return Pair(self.conv(x), x)


def test_what_parts_give_and_take_may_be_of_any_structure(tmp_path):
    torch.manual_seed(0)
    model = Structures().eval()
    wrapped = edgeq.PTCFxModule(model, submodules=["maps", "pair"], example_inputs=images()).calibrate([images()])
    converted = wrapped.convert()
    found, expected = converted(images()), wrapped(images())
    assert list(found) == ["sum", "items", "pair", "third"]
    assert torch.equal(found["sum"], expected["sum"])
    assert torch.equal(found["items"][1], expected["items"][1])
    result = converted.export(images(), tmp_path / "model.onnx")
    assert result.passed
    outputs = run(tmp_path / "model.onnx", images())
    flat = [found["sum"], *found["items"], found["pair"], found["third"]]
    assert len(outputs) == len(flat)
    for mine, theirs in zip(flat, outputs, strict=True):
        assert np.abs(mine.detach().numpy() - theirs).max() < 1e-5


def test_a_part_that_is_called_in_two_ways_takes_the_arguments_that_it_was_captured_with():
    wrapped = edgeq.PTCFxModule(Structures().eval(), submodules=["join"])
    with pytest.raises(edgeq.TraceError, match=r"The argument 'other' .* cannot be another now"):
        wrapped(images())


# ---- what cannot be one file


def test_a_network_that_cannot_be_one_file_says_which_files_it_can_be(tmp_path):
    wrapped = calibrated()
    with pytest.raises(ExportError) as error:
        wrapped.export(data()[0], tmp_path / "model.onnx")
    said = str(error.value)
    assert said.startswith("The model cannot be one file, since what stands around its parts cannot be captured: ")
    assert "if scores.max() < self.threshold" in said
    assert said.endswith("Its parts (backbone, head) can be files of their own: export_parts(example_inputs, folder).")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", FILES, ids=str)
def test_each_part_is_a_file_compared_on_what_it_gets(options, tmp_path):
    wrapped = calibrated()
    results = wrapped.export_parts(data()[0], tmp_path, **options)
    assert list(results) == PARTS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone.onnx", "head.onnx"]
    assert all(result.passed and result.parity for result in results.values())
    assert [len(result.parity[0].tensors) for result in results.values()] == [3, 3]
    with torch.no_grad():
        model = wrapped.convert().module
        entered = model.norm(model.entry(data()[0]))
        fine, coarse = run(tmp_path / "backbone.onnx", entered)
        (scores,) = run(tmp_path / "head.onnx", torch.from_numpy(fine))
    assert coarse.shape == (4, 8, 8, 8)
    assert np.abs(scores - model.head(torch.from_numpy(fine)).numpy()).max() < 1e-4
    if options.get("dynamic_batch"):
        assert run(tmp_path / "head.onnx", images(7, 8, 16, 16))[0].shape[0] == 7


def test_a_part_is_named_by_its_path_and_written_once(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList([Block(3, 3), Block(3, 3)])
            self.again = self.stages[0]

        def forward(self, x):
            return self.again(self.stages[1](self.stages[0](x)))

    wrapped = edgeq.PTCFxModule(Shared().eval(), submodules=["stages"]).calibrate([images()])
    assert list(wrapped.export_parts(images(), tmp_path)) == ["stages.0", "stages.1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stages.0.onnx", "stages.1.onnx"]
    result = wrapped.export(images(), tmp_path / "whole.onnx")
    assert (result.passed, result.nodes["Conv"]) == (True, 3)


class Choosing(nn.Module):
    def __init__(self):
        super().__init__()
        self.large, self.small = (nn.Sequential(nn.Conv2d(3, 3, 1)) for _ in range(2))

    def forward(self, x, mask=None, scale=1.0):
        return self.large(x) if x.abs().mean() > 1 else self.small(x)


def test_a_part_that_these_inputs_do_not_reach_is_named(tmp_path):
    wrapped = edgeq.PTCFxModule(Choosing(), submodules=["large", "small"]).calibrate([images(), 9 * images()])
    message = "The part 'large' is not called when the network runs on example_inputs"
    with pytest.raises(ExportError, match=message):
        wrapped.export_parts(images(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_one_part_has_no_parts_to_export(tmp_path):
    whole = edgeq.PTCFxModule(detector(Plain).backbone).calibrate(data())
    with pytest.raises(edgeq.SpecError, match=r"The network is quantized as a whole: export\(\) writes it"):
        whole.export_parts(data()[0], tmp_path)
    alone = calibrated(Plain, standalone=["head"])
    with pytest.raises(edgeq.SpecError, match="The network is quantized as a whole"):
        alone.convert().export_parts(data()[0], tmp_path)


def test_a_file_of_another_network_with_parts_does_not_pass(tmp_path):
    converted = calibrated(Plain).convert()
    converted.export(data()[0], tmp_path / "model.onnx")
    other = copy.deepcopy(converted)
    with torch.no_grad():
        other.module.get_submodule("head.out").weight.add_(3)
    first, second = (next(iter(module.verify(tmp_path / "model.onnx", data()[0]))) for module in (converted, other))
    assert (first.passed, second.passed) == (True, False)
    assert "head.out" in str(second)


def test_the_graph_of_a_model_that_is_one_already_stays_as_it_is(tmp_path):
    torch.manual_seed(0)
    model = fx.symbolic_trace(Inplace())
    code = model.code
    wrapped = edgeq.PTCFxModule(model, submodules=["part.0"]).calibrate([images()])
    assert wrapped.export(images(), tmp_path / "model.onnx").passed
    assert (model.code, wrapped.module.face.code) == (code, code)
    assert torch.equal(wrapped.convert()(images()), wrapped(images()))
