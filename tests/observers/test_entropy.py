"""Ranges of least divergence, against the definition written out, and on what searches of its kind do wrong."""

import math

import pytest
import torch

from edgeq.observers.entropy import SMOOTHING, Divergence, EntropyObserver
from edgeq.observers.histogram import HALF, HistogramObserver
from edgeq.qparams import qparams_of_range
from edgeq.spec import TensorSpec
from tests.observers.data import DISTRIBUTIONS, normal, uniform
from tests.observers.test_squared_error import error_of

SYMMETRIC_4 = TensorSpec(bits=4, symmetric=True)


def found(spec, *batches, **options):
    observer = EntropyObserver(spec, **options)
    for x in batches:
        observer.observe(x)
    return [end.item() for end in observer.range()]


def divergence_by_hand(edges, counts, scale, zero_point, quant_min, quant_max):
    """Code by code and bin by bin."""
    total, inside = counts.sum().item(), {}
    below = above = 0.0
    for index, count in enumerate(counts.tolist()):
        code = (edges[index] + edges[index + 1]).item() / 2 / scale + zero_point
        below += count / total if code < quant_min - 0.5 else 0
        above += count / total if code >= quant_max + 0.5 else 0
        if quant_min - 0.5 <= code < quant_max + 0.5 and count and index != HALF:
            inside.setdefault(math.floor(code + 0.5), []).append(count / total)
    divergence = -below - above
    for code in range(quant_min, quant_max + 1):
        held = inside.get(code, [])
        taken = sum(held) + below * (code == quant_min) + above * (code == quant_max)
        shape = sum(p / sum(held) * math.log(p / sum(held) * len(held)) for p in held)
        chance = (len(held) - 1) / (2 * total * sum(held)) if held else 0
        divergence += taken * (math.log((taken + SMOOTHING) / (sum(held) + SMOOTHING)) + max(shape - chance, 0))
    return divergence


@pytest.mark.parametrize("spec", [SYMMETRIC_4, TensorSpec(bits=4), TensorSpec(), TensorSpec(bits=2)], ids=str)
@pytest.mark.parametrize("name", ["normal", "after a relu", "shifted", "with outliers", "negative"])
def test_the_divergence_is_that_of_its_definition(name, spec):
    x = DISTRIBUTIONS[name](3000)
    observer = HistogramObserver(spec)
    observer.observe(x)
    edges, counts = observer.edges(), observer.counts.double()
    fractions = torch.tensor([0.3, 0.7, 1.0])
    qparams = qparams_of_range(spec, x.min().clamp(max=0) * fractions, x.max().clamp(min=0) * fractions)
    one_by_one = zip(*(value.expand(3).tolist() for value in qparams), strict=True)
    expected = [divergence_by_hand(edges, counts, *numbers) for numbers in one_by_one]
    assert Divergence(edges, counts).of(qparams).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_evenly_spread_is_hardly_clipped(bits, symmetric):
    low, high = found(TensorSpec(bits=bits, symmetric=symmetric), *(3 * uniform(100_000) - 1).split(10_000))
    assert [low, high] == pytest.approx([-1, 2], rel=0.06)


def test_tails_are_cut_off_with_few_codes_and_kept_with_many():
    x = normal(100_000)
    ends = {bits: found(TensorSpec(bits=bits, symmetric=True), *x.split(10_000))[1] for bits in (4, 6, 8)}
    assert 2 < ends[4] < 3  # deviations: as few as the least squared error wants, 2.55
    assert ends[4] < ends[6] < ends[8]
    assert ends[8] > 3.6


@pytest.mark.parametrize("zeros", [0.5, 0.9, 0.99])
def test_zeros_after_a_relu_change_nothing(zeros):
    positive = DISTRIBUTIONS["exponential"](10_000)
    mixed = torch.cat([positive, torch.zeros(round(10_000 * zeros / (1 - zeros)))])
    ends = [found(TensorSpec(bits=4), *x.split(10_000))[1] for x in (positive, mixed)]
    assert ends[1] == pytest.approx(ends[0], rel=0.3)
    assert ends[1] > 3  # not the narrowest that there is, 0.2 of 9


def test_a_far_outlier_is_cut_off():
    x = torch.cat([normal(15_000), torch.tensor([9.0])])
    assert found(SYMMETRIC_4, x)[1] < 4


@pytest.mark.parametrize("spec", [SYMMETRIC_4, TensorSpec(bits=4)], ids=["symmetric", "affine"])
def test_few_values_each_keep_a_code(spec):
    x = DISTRIBUTIONS["few values"](20_000)
    assert error_of(spec, x, *(torch.tensor(end) for end in found(spec, *x.split(5000)))) < 0.01 * x.var()


@pytest.mark.parametrize("spec", [TensorSpec(), TensorSpec(symmetric=True), TensorSpec(bits=4)], ids=str)
def test_of_a_small_sample_the_gaps_between_values_count_for_nothing(spec):
    """With a value in every hundredth bin a narrower range always fits the sample better."""
    x = 3 * uniform(40) - 1
    assert found(spec, x) == pytest.approx([x.min().item(), x.max().item()], rel=0.15)


def test_codes_as_fine_as_the_bins_are_not_searched():
    x = normal(5000)
    assert found(TensorSpec(bits=16), x) == [x.min(), x.max()]


def test_a_constant_that_every_candidate_clips_has_the_widest_range():
    """At scale 2**-7 the greatest of 255 codes is 1.99, which 2 does not round to, and all other scales are finer."""
    low, high = found(TensorSpec(scale="power_of_two", power_of_two_rule="nearest"), torch.full((100,), 2.0))
    assert (float(low), float(high)) == (0.0, 2.0)
