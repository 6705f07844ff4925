"""The quantizer of a weight whose batch norm is live: rounded so that the norm turns it into the deployed codes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.phase import Phase
from edgeq.quantizers.weight import deployed_ends, entry_scale, raw_scale, row_ends
from edgeq.spec import Granularity, ScaleKind
from tests.quantizers.layouts import normal
from tests.quantizers.weights import quantizer

TWO = ScaleKind.POWER_OF_TWO


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 999), bits=st.sampled_from([4, 8]), power=st.booleans())
def test_a_raw_weight_becomes_the_deployed_codes_when_the_norm_scales_it(seed, bits, power):
    weight, factor = normal(6, 9, seed=seed), normal(6, seed=seed + 1)
    made = quantizer(weight, bits=bits, phase=Phase.ADAPT, scale=TWO if power else ScaleKind.FREE)
    raw = made.raw(weight, made.live_scale(weight, factor))
    deployed = weight * factor[:, None]
    assert torch.equal(made.scale, quantizer(deployed, bits=bits, scale=made.spec.scale).scale)
    steps = raw * factor[:, None] / made.scale[:, None]
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    off_ties = ((deployed / made.scale[:, None]) % 1 - 0.5).abs() > 1e-3
    assert torch.equal(steps.round()[off_ties], made.codes(deployed)[off_ties])


def test_a_scale_adapts_only_in_the_phase_that_adapts():
    weight, factor = normal(4, 6), torch.full((4,), 3.0)
    made = quantizer(weight)
    before = made.scale.clone()
    live = made.live_scale(weight, factor)
    assert torch.equal(made.scale, before)
    assert torch.equal(live, before / 3)


@pytest.mark.parametrize("observer", ["minmax", "squared_error"])
@pytest.mark.parametrize("granularity", Granularity)
def test_adapting_before_a_norm_finds_what_folding_first_would(granularity, observer):
    weight, factor = normal(4, 6), torch.tensor([1.0, -2.0, 0.5, 0.0])
    made = quantizer(weight, observer=observer, phase=Phase.ADAPT, granularity=granularity)
    made.live_scale(weight, factor)
    expected = quantizer(weight * factor[:, None], observer=observer, granularity=granularity).scale
    assert torch.equal(made.scale, expected)


def test_a_channel_that_gamma_turns_off_keeps_three_levels():
    ends = torch.tensor([[-1.0, -1.0, -3.0, 0.0], [2.0, 2.0, 1.0, 0.0]])
    factor = torch.tensor([0.0, 1e-9, -0.5, 0.0])
    scale = torch.tensor([0.1, 0.1, 0.1, 0.1])
    assert raw_scale(scale, factor, ends).tolist() == [2.0, 2.0, pytest.approx(-0.2), 1.0]
    weight = torch.tensor([[-1.0, 2.0], [-1.0, 2.0], [-3.0, 1.0], [0.0, 0.0]])
    made = quantizer(weight)
    assert made.raw(weight, raw_scale(scale, factor, ends))[0].tolist() == [0.0, 2.0]  # -0.5 steps are a tie


def test_extremes_of_rows_and_what_a_negative_factor_makes_of_them():
    weight = torch.tensor([[1.0, -4.0], [2.0, 3.0]])
    assert row_ends(weight, 0).tolist() == [[-4.0, 2.0], [1.0, 3.0]]
    assert row_ends(weight, 1).tolist() == [[1.0, -4.0], [2.0, 3.0]]
    low, high = deployed_ends(row_ends(weight, 0), torch.tensor([-2.0, 1.0]))
    assert (low.tolist(), high.tolist()) == ([-2.0, 2.0], [8.0, 3.0])


def test_behind_another_norm_an_output_that_gamma_turns_off_keeps_steps_of_its_own():
    weight, gain = torch.ones(2, 3, 1, 1), torch.tensor([0.0, -2.0]).reshape(2, 1, 1, 1).expand(2, 3, 1, 1)
    scale = entry_scale(torch.full((2, 1, 1, 1), 0.5), gain, weight, 1, 127)
    assert scale[0].flatten().tolist() == pytest.approx([1 / 127] * 3)
    assert scale[1].flatten().tolist() == [-0.25] * 3
