"""The mean of a clipped normal number, and of what layers read."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeq.recovery.input_means import clipped_normal_mean, known_means, mean_answers, output_means
from tests.recovery.uneven import DATA, Chain, calibrated, layer, work_on

BOUNDS = [(None, None), (0.0, None), (0.0, 6.0), (-1.0, 1.0), (None, 2.0), (1.0, None)]


@pytest.mark.parametrize(("floor", "ceiling"), BOUNDS)
def test_the_closed_form_is_the_mean_of_clipped_samples(floor, ceiling):
    mean, deviation = torch.tensor([-2.0, 0.0, 0.5, 5.5]), torch.tensor([1.0, 0.5, 2.0, 1.0])
    normal = torch.randn(1 << 20, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = mean + deviation * torch.cat([normal, -normal])
    expected = samples if floor is None and ceiling is None else samples.clamp(floor, ceiling)
    found = clipped_normal_mean(mean, deviation, floor, ceiling)
    assert torch.allclose(found, expected.mean(0), atol=3e-3)


def test_behind_a_relu_it_is_the_formula_of_the_half_normal():
    """``mean P(mean / deviation) + deviation p(mean / deviation)``, with P from the error function."""
    for mean, deviation in ((0.0, 1.0), (1.3, 0.7), (-2.0, 0.5)):
        z = mean / deviation
        expected = mean * (1 + math.erf(z / 2**0.5)) / 2 + deviation * math.exp(-z * z / 2) / (2 * math.pi) ** 0.5
        found = clipped_normal_mean(torch.tensor([mean]), torch.tensor([deviation]), 0.0, None)
        assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_a_channel_without_deviation_has_its_clipped_mean():
    found = clipped_normal_mean(torch.tensor([-1.0, 3.0, 9.0]), torch.zeros(3), 0.0, 6.0)
    assert found.tolist() == [0.0, 3.0, 6.0]


def test_the_means_behind_batch_norms_are_near_those_of_the_data():
    wrapped = calibrated(Chain())
    known = known_means(wrapped.module, ((DATA[0],), {}))
    assert {found.site.name for found in known} == {"conv2", "conv3", "fc"}
    first = layer(wrapped, "conv2")
    model = wrapped.module
    measured = torch.relu(model.norm1(F.conv2d(torch.cat(DATA), model.conv1.weight, padding=1))).mean((0, 2, 3))
    assert torch.allclose(known[first], measured, atol=0.05)
    assert torch.equal(known[first], output_means(layer(wrapped, "conv1")).float())


def test_behind_a_maximum_and_behind_a_sum_nothing_is_known():
    class Others(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.two, self.three, self.four = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            y = F.relu(self.norm(self.one(x)))
            return self.two(F.max_pool2d(y, 2)), self.three(y + x), self.four(F.pad(F.avg_pool2d(y, 2), (1, 1)))

    assert not known_means(calibrated(Others().eval()).module, ((DATA[0],), {}))


@torch.no_grad()
def test_the_mean_answer_to_measured_inputs_is_the_mean_of_all_answers():
    wrapped = calibrated(Chain())
    wanted = {found: torch.randn_like(found.weight) for found in wrapped.module.quantized_layers()}
    work = work_on(wrapped)
    answers = mean_answers(work, wanted.get, {})
    x = torch.cat([call[0][0] for call in work.seen])
    expected = F.conv2d(x, wanted[layer(wrapped, "conv1")], padding=1).mean((0, 2, 3))
    assert torch.allclose(answers[layer(wrapped, "conv1")], expected, rtol=1e-4, atol=1e-5)
    model = wrapped.module
    for number in (1, 2, 3):
        norm, conv = getattr(model, f"norm{number}"), getattr(model, f"conv{number}")
        x = torch.relu(norm(conv.operation(x, conv.weight, conv.bias)))
    expected = F.linear(x.mean((2, 3)), wanted[model.fc]).mean(0)
    assert torch.allclose(answers[model.fc], expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_known_means_are_taken_at_all_positions_with_the_zeros_that_a_layer_pads():
    wrapped = calibrated(Chain())
    first = layer(wrapped, "conv2")
    weight, mean = torch.ones_like(first.weight), torch.arange(8.0)
    answer = mean_answers(work_on(wrapped), {first: weight}.get, {first: mean})[first]
    taps = F.conv2d(torch.ones(1, 1, 16, 16), torch.ones(1, 1, 3, 3), padding=1).mean()
    assert torch.allclose(answer, mean * taps)
