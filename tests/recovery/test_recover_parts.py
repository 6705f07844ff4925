"""A network of which some submodules are quantized is recovered part by part."""

import copy

import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import SpecError
from recipes.benchmarks.accuracy import signal_to_noise
from tests.networks import batches, network

DATA, TEST = batches(8, seed=1), torch.cat(batches(4, seed=2))
LOW = {"inherits": "DEFAULT", "weight": {"bits": 3}}
PARTS = ["stem", "depth", "classifier"]


def parted(parts=PARTS, model=None):
    model = network("separable").eval() if model is None else model
    return edgeq.PTCFxModule(model, LOW, submodules=parts, bias_calibration_factor=0.0).calibrate(DATA)


@torch.no_grad()
def quality(wrapped, model):
    return signal_to_noise(model(TEST), wrapped(TEST))


def test_every_part_is_recovered_behind_those_before_it():
    model = network("separable").eval()
    wrapped = parted(model=copy.deepcopy(model))
    before = quality(wrapped, model)
    report = wrapped.recover(DATA, ["compensated_rounding", "bias_calibration"])
    assert [step.name for step in report.steps] == [
        f"{part}: {step}" for part in PARTS for step in ("compensated_rounding", "bias_calibration")
    ]
    assert any(step.kept and step.gain > 0.5 for step in report.steps)
    assert quality(wrapped, model) > before + 0.5
    with torch.no_grad():
        assert torch.equal(wrapped.convert()(TEST), wrapped(TEST))
    assert not any(part._forward_pre_hooks for part in wrapped.module.parts.values())


def test_one_part_is_recovered_as_a_network_by_itself_on_what_reaches_it():
    wrapped = parted(["stem"])
    alone = edgeq.PTCFxModule(network("separable").eval().stem, LOW, bias_calibration_factor=0.0).calibrate(DATA)
    wrapped.recover(DATA, ["compensated_rounding"])
    alone.recover(DATA, ["compensated_rounding"])
    part = wrapped.module.parts["stem"].state_dict()
    same = alone.module.state_dict()
    weights = [key for key in same if key.endswith("weight_quantizer.offset")]
    assert weights
    assert all(torch.equal(part[key], same[key]) for key in weights)


class Twice(nn.Module):
    """One part that is called twice, on tensors of two sizes, and one that nothing calls."""

    def __init__(self):
        super().__init__()
        self.head, self.spare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.head(x).mean((2, 3)) + self.head(x[:, :, ::2, ::2]).mean((2, 3))


def test_a_part_learns_from_all_of_its_calls_and_one_without_any_is_left_out():
    torch.manual_seed(0)
    wrapped = parted(["head", "spare"], Twice().eval())
    report = wrapped.recover(DATA, ["compensated_rounding"])
    assert [step.name for step in report.steps] == ["head: compensated_rounding"]
    assert report.steps[0].note == "14 batches"  # two calls in each of eight batches, of which two are held out


def test_each_part_goes_on_from_a_checkpoint_of_its_own(tmp_path):
    wrapped, again = parted(), parted()
    path = tmp_path / "recovery.pt"
    first = wrapped.recover(DATA, ["compensated_rounding"], checkpoint=path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"recovery.pt.{part}" for part in PARTS)
    second = again.recover(DATA, ["compensated_rounding"], checkpoint=path)
    assert [step.seconds for step in second.steps] == [step.seconds for step in first.steps]  # nothing was done anew
    for key, value in wrapped.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_what_cannot_be_done_is_said_before_anything_is_changed():
    wrapped = parted()
    before = copy.deepcopy(wrapped.state_dict())
    with pytest.raises(SpecError, match="compensated_rounding"):
        wrapped.recover(DATA, ["compensated_ronding"])
    assert all(torch.equal(value, before[key]) for key, value in wrapped.state_dict().items())
