"""Scales and zero points of ranges (laws 3, 4, 5 and 8) against closed forms in exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.arithmetic import LARGEST_SCALE, SMALLEST_SCALE, PowerOfTwoRule, choose_scale, code_range, power_of_two
from tests.strategies import bit_widths, moderate, numbers

rules = st.sampled_from(list(PowerOfTwoRule))
sizes = st.floats(2.0**-59, 2.0**59, width=32)


def chosen(low, high, codes, symmetric, rule=None):
    scale, zero_point = choose_scale(
        torch.tensor(low), torch.tensor(high), *codes, symmetric=symmetric, power_of_two_rule=rule
    )
    assert scale.dtype is torch.float32
    assert zero_point.dtype is torch.int32
    return scale.item(), zero_point.item()


def is_power_of_two(x):
    return np.frexp(x)[0] == 0.5


@settings(deadline=None, max_examples=300)
@given(value=sizes, rule=rules)
def test_the_power_of_two_is_the_one_that_its_rule_says(value, rule):
    power = power_of_two(torch.tensor(value), rule).item()
    assert is_power_of_two(power)
    exact, found = Fraction(value), Fraction(power)
    if rule is PowerOfTwoRule.CEIL:
        assert found / 2 < exact <= found
    elif rule is PowerOfTwoRule.FLOOR:
        assert found <= exact < 2 * found
    else:
        assert found**2 / 2 <= exact**2 <= 2 * found**2  # within a factor sqrt(2), without a logarithm


@pytest.mark.parametrize("rule", PowerOfTwoRule)
def test_every_power_of_two_stands_for_itself(rule):
    values = torch.tensor([2.0**k for k in range(-60, 61)])
    assert torch.equal(power_of_two(values, rule), values)


def test_beside_a_power_of_two_the_rules_part():
    four = torch.tensor(4.0)
    above, below = torch.nextafter(four, torch.tensor(5.0)), torch.nextafter(four, torch.tensor(3.0))
    in_order = PowerOfTwoRule.CEIL, PowerOfTwoRule.NEAREST, PowerOfTwoRule.FLOOR
    assert [power_of_two(above, rule).item() for rule in in_order] == [8, 4, 4]
    assert [power_of_two(below, rule).item() for rule in in_order] == [4, 4, 2]


@settings(deadline=None, max_examples=200)
@given(low=moderate, high=moderate, bits=bit_widths)
def test_a_symmetric_signed_scale_makes_both_ends_representable(low, high, bits):
    """Law 4: max(-min / 2^(b-1), max / (2^(b-1) - 1)), each quotient rounded once to float32."""
    low, high = min(low, -1e-3), max(high, 1e-3)
    scale, zero_point = chosen(low, high, code_range(bits, True), symmetric=True)
    below = np.float32(-low) / np.float32(2 ** (bits - 1))
    above = np.float32(high) / np.float32(2 ** (bits - 1) - 1)
    assert scale == max(below, above)
    assert zero_point == 0


@settings(deadline=None, max_examples=200)
@given(low=moderate, high=moderate, bits=bit_widths, signed=st.booleans())
def test_an_affine_scale_spreads_the_range_over_all_codes(low, high, bits, signed):
    low, high = min(low, -1e-3), max(high, 1e-3)
    codes = code_range(bits, signed)
    scale, zero_point = chosen(low, high, codes, symmetric=False)
    exact = (Fraction(float(np.float32(high))) - Fraction(float(np.float32(low)))) / (codes[1] - codes[0])
    assert abs(Fraction(scale) - exact) <= exact * Fraction(2) ** -23
    assert abs(Fraction(zero_point - codes[0]) - Fraction(float(np.float32(-low))) / exact) <= Fraction(51, 100)
    assert codes[0] <= zero_point <= codes[1]


@settings(deadline=None, max_examples=200)
@given(absmax=sizes.filter(lambda x: 2.0**-30 < x < 2.0**30), bits=bit_widths, signed=st.booleans())
def test_the_default_power_of_two_is_that_of_law_5(absmax, bits, signed):
    """2^ceil(log2(absmax / 2^(b-1))), with 2^b for codes without a sign: one step of the end may clip."""
    scale, zero_point = chosen(-absmax * signed, absmax, code_range(bits, signed), True, PowerOfTwoRule.CEIL)
    exact = Fraction(float(np.float32(absmax))) / 2 ** (bits - signed)
    assert is_power_of_two(scale)
    assert Fraction(scale) / 2 < exact <= Fraction(scale)
    assert zero_point == 0


@pytest.mark.parametrize("k", [-20, -1, 0, 7])
def test_a_range_of_a_power_of_two_does_not_double_its_step(k):
    end = 2.0**k
    assert chosen(-end, end, (-128, 127), True, PowerOfTwoRule.CEIL) == (end / 128, 0)
    assert chosen(0.0, end, (0, 255), True, PowerOfTwoRule.CEIL) == (end / 256, 0)
    assert chosen(-end / 2, end / 2, (0, 255), False, PowerOfTwoRule.CEIL) == (end / 256, 128)
    assert chosen(-end, end, (-8, 7), True, PowerOfTwoRule.CEIL) == (end / 8, 0)


@settings(deadline=None, max_examples=200)
@given(low=numbers, high=numbers, bits=bit_widths, signed=st.booleans(), symmetric=st.booleans(), rule=rules)
def test_every_power_of_two_rule_gives_one_whatever_the_range(low, high, bits, signed, symmetric, rule):
    scale, zero_point = chosen(low, high, code_range(bits, signed), symmetric, rule)
    assert is_power_of_two(scale)
    assert code_range(bits, signed)[0] <= zero_point <= code_range(bits, signed)[1]


@settings(deadline=None, max_examples=200)
@given(low=numbers, high=numbers, bits=bit_widths, signed=st.booleans(), symmetric=st.booleans())
def test_no_range_leads_out_of_the_bounds_of_a_scale(low, high, bits, signed, symmetric):
    scale, zero_point = chosen(low, high, code_range(bits, signed), symmetric)
    assert SMALLEST_SCALE <= scale <= LARGEST_SCALE
    assert code_range(bits, signed)[0] <= zero_point <= code_range(bits, signed)[1]


def test_a_range_of_no_extent_counts_as_one_of_extent_1():
    assert chosen(0.0, 0.0, (0, 255), symmetric=False) == (np.float32(1 / 255), 0)
    assert chosen(0.0, 0.0, (-128, 127), symmetric=True) == (np.float32(1 / 127), 0)
    assert chosen(0.0, 0.0, (-128, 127), True, PowerOfTwoRule.CEIL) == (2.0**-6, 0)


def test_the_range_is_made_to_hold_zero():
    assert chosen(2.0, 5.1, (0, 255), symmetric=False) == chosen(0.0, 5.1, (0, 255), symmetric=False)
    assert chosen(2.0, 5.1, (0, 255), symmetric=False)[1] == 0
    assert chosen(-5.1, -2.0, (0, 255), symmetric=False)[1] == 255
    assert chosen(-5.1, -2.0, (-128, 127), symmetric=False)[1] == 127


def test_ranges_and_code_bounds_of_many_channels_in_one_call():
    low, high = torch.tensor([-1.0, 0.0, -3.0]), torch.tensor([2.0, 4.0, 0.0])
    quant_min, quant_max = torch.tensor([-128, 0, -128]), torch.tensor([127, 255, 127])
    scale, zero_point = choose_scale(low, high, quant_min, quant_max, symmetric=True)
    for index in range(3):
        alone = chosen(low[index].item(), high[index].item(), (int(quant_min[index]), int(quant_max[index])), True)
        assert (scale[index].item(), zero_point[index].item()) == alone
