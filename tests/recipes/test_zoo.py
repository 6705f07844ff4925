"""The sweep over networks: a short sample of it, and that it says so when a network does not pass."""

import pytest
import torch
from torch import nn

from recipes.zoo import subjects, table
from recipes.zoo.stages import STAGES, Subject, Verdict, settle_norms, walk


def small(build, **options):
    return Subject("small", "tests", build, lambda: (torch.randn(4, 3, 16, 16),), **options)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3))


def test_a_short_sample_of_the_sweep_passes_every_stage():
    for name in subjects.choose((), sample=True):
        verdict = walk(subjects.subject(name))
        assert verdict.passed, f"{name}: {verdict.failed}: {verdict.error}"
        assert tuple(verdict.seconds) == STAGES
        assert verdict.layers >= 20
        assert verdict.covered > 0.95
        assert verdict.unequal <= 0.004


def test_detection_passes_in_parts():
    verdict = walk(subjects.subject("ssdlite320_mobilenet_v3_large"))
    assert verdict.passed, verdict.error
    assert verdict.layers == 98
    assert verdict.covered > 0.98


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "layers"), [("maskrcnn_resnet50_fpn", 74), ("keypointrcnn_resnet50_fpn", 77)])
def test_boxes_reach_the_heads_of_masks_and_key_points(name, layers):
    """Which have no ranges otherwise, and then cannot be converted."""
    verdict = walk(subjects.subject(name))
    assert verdict.passed, verdict.error
    assert verdict.layers == layers  # all of the backbone, the proposals, the boxes, and the masks or key points
    assert verdict.covered > 0.99


def test_a_network_without_layers_stops_at_prepare_with_an_error_that_says_why():
    verdict = walk(small(nn.ReLU))
    assert verdict.failed == "prepare"
    assert verdict.is_clear
    assert "no layer that can be quantized" in verdict.error
    assert list(verdict.seconds) == ["build"]


def test_a_gradient_that_is_not_finite_is_found():
    class Broken(Block):
        def forward(self, x):
            return super().forward(x) / 0.0

    verdict = walk(small(Broken))
    assert verdict.failed == "train"
    assert "not finite" in verdict.error
    assert not verdict.is_clear


def test_an_error_of_python_carries_its_place():
    def build():
        raise ZeroDivisionError("on purpose")

    verdict = walk(small(build))
    assert verdict.failed == "build"
    assert "ZeroDivisionError: on purpose" in verdict.error
    assert "in build" in verdict.error


def test_batch_norms_get_the_statistics_of_the_inputs_and_keep_their_momentum():
    network, x = Block().eval(), torch.randn(64, 3, 16, 16)
    settle_norms(network, (x,))
    y = network.norm(network.conv(x)).detach()
    assert y.mean((0, 2, 3)).abs().max() < 1e-5
    assert (y.var((0, 2, 3)) - 1).abs().max() < 1e-3
    assert network.norm.momentum == 0.1
    assert not network.norm.training


def test_the_table_counts_verdicts_and_names_what_failed():
    good = Verdict("good", "a", dict.fromkeys(STAGES, 1.0), layers=3, covered=0.5, unequal=0.0002)
    bad = Verdict("bad", "a", {"build": 1.0}, failed="prepare", error="TraceError: no\nmore", is_clear=True)
    lines = table.markdown([good, bad]).splitlines()
    assert "| a | 2 | 1 | 1 | 0 |" in lines
    assert "| good | pass | 3 | 50.0 % | 0.020 % | 1.0 | 1.0 | 1.0 | 1.0 | 1.0 | 1.0 | 1.0 |  |" in lines
    assert "- **bad**, prepare: TraceError: no" in lines


def test_every_name_of_the_zoo_has_one_family():
    names = [name for names in subjects.FAMILIES.values() for name in names]
    assert len(names) == len(set(names)) >= 150
    assert {subjects.family_of(name) for name in names} == set(subjects.FAMILIES)
