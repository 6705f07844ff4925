"""The quantizer of a deployed weight: scales, codes, offsets, and what it gives the gradient."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.arithmetic import PowerOfTwoRule, fake_quantize
from edgeq.observers.squared_error import SquaredErrorObserver
from edgeq.phase import Phase
from edgeq.quantizers.weight import WeightQuantizer
from edgeq.spec import WEIGHT, Granularity, Method, ScaleKind
from tests.quantizers.layouts import normal
from tests.quantizers.weights import quantizer
from tests.strategies import numbers

TWO = ScaleKind.POWER_OF_TWO


def definition(made, weight):
    axis = None if made.scale.dim() == 0 else made.axis
    zero = torch.zeros(made.scale.shape, dtype=torch.int32)
    return fake_quantize(weight, made.scale, zero, *made.spec.codes(signed=True), axis)


weights = (
    st.integers(1, 4)
    .flatmap(lambda n: st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=1, max_size=4))
    .map(torch.tensor)
)


@settings(deadline=None, max_examples=200)
@given(
    weight=weights,
    bits=st.sampled_from([3, 4, 7, 8, 16]),
    granularity=st.sampled_from(Granularity),
    scale=st.sampled_from(ScaleKind),
    rule=st.sampled_from(PowerOfTwoRule),
    axis=st.sampled_from([0, 1]),
    phase=st.sampled_from([Phase.ADAPT, Phase.QUANTIZE]),
)
def test_any_weight_is_kept_as_its_codes_say(weight, bits, granularity, scale, rule, axis, phase):
    """Laws 1, 5 and 8, degenerate channels among them."""
    made = quantizer(weight, axis, phase=phase, bits=bits, granularity=granularity, scale=scale, power_of_two_rule=rule)
    kept = made(weight)
    assert torch.equal(kept, definition(made, weight))
    codes = made.codes(weight)
    assert torch.equal(codes, codes.round().clamp(made.codes_min, made.codes_max))
    shape = [1, 1]
    shape[axis] = -1
    assert torch.equal(codes * made.scale.reshape(shape), kept)
    assert bool(torch.isfinite(kept).all())
    assert scale is ScaleKind.FREE or set(np.frexp(made.scale.numpy().reshape(-1))[0]) == {0.5}


@pytest.mark.parametrize("axis", [0, 1])
def test_the_scale_of_a_channel_is_its_closed_form(axis):
    weight = normal(4, 4, 3, 3)
    rows = weight.transpose(0, axis).flatten(1)
    expected = torch.maximum(rows.amin(1) / -128, rows.amax(1) / 127)
    assert torch.equal(quantizer(weight, axis).scale, expected)
    one = quantizer(weight, axis, granularity=Granularity.TENSOR).scale
    assert one == torch.maximum(weight.min() / -128, weight.max() / 127)
    powers = quantizer(weight, axis, scale=TWO).scale
    assert torch.equal(powers, 2.0 ** torch.ceil(torch.log2(rows.abs().amax(1) / 128)))


def test_a_channel_of_zeros_has_a_scale_and_stays_zero():
    weight = normal(3, 5)
    weight[1] = 0.0
    made = quantizer(weight)
    assert made.scale[1] == torch.tensor(1 / 127)
    assert made(weight)[1].tolist() == [0.0] * 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_rounded_in_float32(dtype):
    weight = normal(4, 50).to(dtype)
    torch.set_default_dtype(torch.float64)
    made = quantizer(weight)
    torch.set_default_dtype(torch.float32)
    assert made.scale.dtype is torch.float32
    assert made(weight).dtype is dtype
    assert torch.equal(made(weight), definition(made, weight.float()).to(dtype))


def test_a_bias_that_would_not_fit_widens_the_scale():
    weight, smallest = normal(3, 4), torch.tensor([0.0, 1.5, 1e-9])
    made = quantizer(weight)
    free = made.scale.clone()
    made.refresh(weight, smallest)
    assert made.scale.tolist() == [free[0], 1.5, free[2]]
    one = quantizer(weight, granularity=Granularity.TENSOR)
    one.refresh(weight, smallest)
    assert one.scale == 1.5
    power = quantizer(weight, scale=TWO)
    power.refresh(weight, smallest)
    assert power.scale[1] == 2.0
    assert power.scale[0] == quantizer(weight, scale=TWO).scale[0]


def test_offsets_move_codes_and_stay_within_them():
    weight = torch.tensor([[1.0, -0.5, 0.26, 0.0]])
    made = WeightQuantizer(dataclasses.replace(WEIGHT, bits=3), Method("minmax"), 1, 0, weight.shape)
    made.refresh(weight)
    assert made.codes(weight).tolist() == [[3.0, -2.0, 1.0, 0.0]]  # steps of 1/3; -1.5 is a tie
    made.offset.copy_(torch.tensor([[1, 1, -1, -1]]))
    assert made.codes(weight).tolist() == [[3.0, -1.0, 0.0, -1.0]]  # 3 is the greatest of 3 bits
    assert torch.equal(made(weight), made.codes(weight) * made.scale)


def gradient(made, weight):
    weight = weight.clone().requires_grad_()
    made(weight).sum().backward()
    return weight.grad


def test_the_gradient_is_whole_while_the_scale_follows_the_extremes_and_clipped_when_it_is_frozen():
    weight = torch.tensor([[0.5, -1.0, 1.0]])
    made = quantizer(weight, phase=Phase.ADAPT)
    assert gradient(made, weight).tolist() == [[1.0, 1.0, 1.0]]
    made.phase = Phase.QUANTIZE
    assert gradient(made, 1.5 * weight).tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    "changes",
    [
        {"range_max": 0.7},
        {"fixed_range": 0.7},
        {"scale": TWO, "power_of_two_rule": PowerOfTwoRule.FLOOR},
        {"scale": TWO, "power_of_two_rule": PowerOfTwoRule.NEAREST},
    ],
    ids=str,
)
def test_a_weight_that_clips_while_it_adapts_gets_no_gradient_there(changes):
    weight = torch.tensor([[0.3, -1.4, 1.4]])
    made = quantizer(weight, phase=Phase.ADAPT, **changes)
    assert gradient(made, weight).tolist() == [[1.0, 0.0, 0.0]]


def test_a_clipping_observer_gives_no_gradient_beyond_its_range():
    weight = torch.cat([normal(1, 400) / 5, torch.tensor([[30.0]])], 1)
    made = quantizer(weight, observer="squared_error", phase=Phase.ADAPT, bits=4)
    assert isinstance(made.measure.__self__, SquaredErrorObserver)
    ratio = weight / made.scale[0]
    assert torch.equal(gradient(made, weight), ((ratio > -8.5) & (ratio < 7.5)).float())
    assert gradient(made, weight)[0, -1] == 0


def test_the_gradient_belongs_to_the_scale_of_its_forward_pass():
    weight = torch.tensor([[0.5, -1.0, 1.0]], requires_grad=True)
    made = quantizer(weight)
    y = made(weight)
    made.refresh(weight / 100)  # the next forward of a weight used twice
    y.sum().backward()
    assert weight.grad.tolist() == [[1.0, 1.0, 1.0]]
