"""Rounding, quantizing and dequantizing against exact rational arithmetic (laws 1, 3 and 7)."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.arithmetic import Rounding, along, code_range, dequantize, fake_quantize, quantize, round_to_integer
from tests.strategies import bit_widths, moderate, numbers, rounded, roundings, scales, tensors


def exact_code(x, scale, zero_point, low, high, rounding):
    """One code by definition. The quotient of two float32, taken in float64 and then rounded, is theirs in float32."""
    with np.errstate(over="ignore", under="ignore"):
        ratio = np.float32(np.float64(x) / np.float64(scale))
    if np.isinf(ratio):
        return high if ratio > 0 else low
    return min(max(rounded(Fraction(float(ratio)), rounding) + zero_point, low), high)


@pytest.mark.parametrize("rounding", Rounding)
@settings(deadline=None, max_examples=200)
@given(x=tensors(moderate, min_size=1))
def test_rounding_is_exact_for_every_number(rounding, x):
    assert round_to_integer(x, rounding).tolist() == [rounded(Fraction(value), rounding) for value in x.tolist()]


@pytest.mark.parametrize("rounding", Rounding)
def test_only_the_half_itself_is_a_tie(rounding):
    half = torch.arange(-40, 40) + 0.5
    for x in (half, torch.nextafter(half, torch.tensor(1e9)), torch.nextafter(half, torch.tensor(-1e9))):
        assert round_to_integer(x, rounding).tolist() == [rounded(Fraction(value), rounding) for value in x.tolist()]


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        (Rounding.HALF_EVEN, [-2, -2, 0, 0, 2, 2]),
        (Rounding.HALF_UP, [-2, -1, 0, 1, 2, 3]),
        (Rounding.HALF_AWAY, [-3, -2, -1, 1, 2, 3]),
        (Rounding.FLOOR, [-3, -2, -1, 0, 1, 2]),
    ],
)
def test_each_rounding_has_its_own_way_at_ties(rounding, expected):
    assert round_to_integer(torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]), rounding).tolist() == expected


@settings(deadline=None, max_examples=300)
@given(x=tensors(numbers), scale=scales, bits=bit_widths, signed=st.booleans(), rounding=roundings, data=st.data())
def test_codes_and_what_they_stand_for_are_those_of_exact_arithmetic(x, scale, bits, signed, rounding, data):
    low, high = code_range(bits, signed)
    zero_point = data.draw(st.integers(low, high))
    arguments = torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32)
    codes = quantize(x, *arguments, low, high, None, rounding)
    expected = [exact_code(value, scale, zero_point, low, high, rounding) for value in x.tolist()]
    assert codes.tolist() == expected
    real = [float(np.float32((code - zero_point) * scale)) for code in expected]  # one rounding, to float32
    assert dequantize(codes, *arguments).tolist() == real
    assert fake_quantize(x, *arguments, low, high, None, rounding).tolist() == real


@settings(deadline=None, max_examples=100)
@given(x=tensors(moderate, min_size=1), scale=scales, rounding=roundings.filter(lambda r: r is not Rounding.FLOOR))
def test_quantizing_twice_changes_nothing(x, scale, rounding):
    arguments = torch.tensor(scale), torch.tensor(3, dtype=torch.int32), -128, 127, None, rounding
    once = fake_quantize(x, *arguments)
    assert torch.equal(fake_quantize(once, *arguments), once)


def test_quantizing_divides_where_the_reciprocal_would_miss_ties():
    scale = torch.arange(3.0, 256.0, 2)  # odd numbers: (n + 0.5) * scale has no rounding error
    for n in range(100):
        x = (n + 0.5) * scale
        codes = quantize(x, scale, torch.tensor(0), 0, 255, axis=0)
        assert codes.unique().tolist() == [n + n % 2]
    assert bool((torch.round(100.5 * scale * (1 / scale)) != 100).any())  # so the test can tell them apart


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_are_quantized_in_float32_and_given_back(dtype):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    arguments = torch.tensor(0.037), torch.tensor(5, dtype=torch.int32), 0, 255
    assert torch.equal(quantize(x, *arguments), quantize(x.float(), *arguments))
    expected = fake_quantize(x.float(), *arguments).to(dtype)
    assert fake_quantize(x, *arguments).dtype is dtype
    assert torch.equal(fake_quantize(x, *arguments), expected)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_a_channel_is_quantized_as_if_it_were_alone(axis):
    x = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(1))
    scale, zero_point = torch.tensor([0.01, 0.3, 2.0]), torch.tensor([0, -3, 7], dtype=torch.int32)
    whole = fake_quantize(x, scale, zero_point, -8, 7, axis)
    for channel in range(3):
        alone = fake_quantize(x.select(axis, channel), scale[channel], zero_point[channel], -8, 7)
        assert torch.equal(whole.select(axis, channel), alone)
    codes = quantize(x, scale, zero_point, -8, 7, axis, dtype=torch.int8)
    assert codes.dtype is torch.int8
    assert torch.equal(dequantize(codes, scale, zero_point, axis), whole)


def test_values_lie_along_their_axis():
    assert along(torch.zeros(5), 1, 4).shape == (1, 5, 1, 1)
    assert along(torch.zeros(5), -1, 3).shape == (1, 1, 5)
    assert along(torch.zeros(()), 1, 4).shape == ()
    assert along(torch.zeros(5), None, 4).shape == (5,)


@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8, 16, 25, 32])
def test_the_codes_of_b_bits(bits):
    assert code_range(bits, signed=True) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert code_range(bits, signed=False) == (0, 2**bits - 1)


@pytest.mark.parametrize("bits", [-1, 0, 1, 33])
def test_no_codes_of_fewer_than_2_or_more_than_32_bits(bits):
    with pytest.raises(ValueError, match=f"must lie in 2..32, got {bits}"):
        code_range(bits, signed=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rounding", Rounding)
def test_a_gpu_gives_the_same_numbers(rounding):
    x = torch.randn(1 << 20, generator=torch.Generator().manual_seed(2)) * 10
    for scale in (0.037, 2.0**-5, 3.0):
        arguments = torch.tensor(scale), torch.tensor(5, dtype=torch.int32)
        expected = fake_quantize(x, *arguments, 0, 255, None, rounding)
        found = fake_quantize(x.cuda(), *(value.cuda() for value in arguments), 0, 255, None, rounding)
        assert torch.equal(found.cpu(), expected)
