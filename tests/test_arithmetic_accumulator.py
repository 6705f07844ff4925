"""The bias and the way from an accumulator to codes (law 6), against exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edgeq
from edgeq.arithmetic import (
    LARGEST_BIAS,
    LARGEST_EXACT_INTEGER,
    bias_range,
    bias_scale,
    multiplier,
    requantize,
    smallest_weight_scale,
)
from tests.strategies import rounded, roundings

scales = st.floats(2.0**-20, 2.0**10, width=32)
accumulators = st.lists(st.integers(-LARGEST_EXACT_INTEGER, LARGEST_EXACT_INTEGER), min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(
    sums=accumulators, factor=st.floats(2.0**-30, 2.0**4, width=32), zero_point=st.integers(0, 255), rounding=roundings
)
def test_output_codes_are_those_of_exact_arithmetic(sums, factor, zero_point, rounding):
    """The product is rounded once to float32, as the runtimes do, then to an integer."""
    found = requantize(torch.tensor(sums), torch.tensor(factor), torch.tensor(zero_point), 0, 255, None, rounding)
    products = [float(np.float32(value * factor)) for value in sums]
    expected = [rounded(Fraction(product), rounding) + zero_point for product in products]
    assert found.tolist() == [min(max(code, 0), 255) for code in expected]


@settings(deadline=None, max_examples=200)
@given(sums=accumulators, shift=st.integers(0, 24), rounding=roundings)
def test_a_power_of_two_requantizes_as_a_shift_does(sums, shift, rounding):
    found = requantize(torch.tensor(sums), torch.tensor(2.0**-shift), torch.tensor(0), -128, 127, None, rounding)
    expected = [rounded(Fraction(value, 2**shift), rounding) for value in sums]
    assert found.tolist() == [min(max(code, -128), 127) for code in expected]


def test_each_channel_has_its_own_factor():
    sums = torch.tensor([[10, 10, 10], [-7, -7, -7]])
    codes = requantize(sums, torch.tensor([0.5, 0.25, 3.0]), torch.tensor(1), -8, 7, axis=1, dtype=torch.int8)
    assert codes.tolist() == [[6, 3, 7], [-3, -1, -8]]
    assert codes.dtype is torch.int8


@settings(deadline=None, max_examples=100)
@given(source=scales, weight=scales, target=scales)
def test_the_scale_of_the_bias_is_that_of_the_accumulator(source, weight, target):
    s, w, t = (torch.tensor(value) for value in (source, weight, target))
    product = np.float32(source) * np.float32(weight)
    assert bias_scale(s, w).item() == product
    assert multiplier(s, w, t).item() == product / np.float32(target)


@settings(deadline=None, max_examples=200)
@given(bias=st.floats(-1e6, 1e6, width=32), source=scales, bits=st.sampled_from([8, 16, 24, 32]))
def test_at_the_smallest_weight_scale_a_bias_just_fits(bias, source, bits):
    weight = smallest_weight_scale(torch.tensor(bias), torch.tensor(source), bits)
    greatest = min(2 ** (bits - 1) - 1, LARGEST_BIAS)
    if weight > 2.0**-60:  # above the least of all scales
        code = abs(bias) / bias_scale(torch.tensor(source), weight).item()
        assert code == pytest.approx(greatest, rel=1e-6)
        assert round(code) <= greatest + 1  # of LARGEST_BIAS, where float32 still holds the sum with an accumulator
    assert (weight == 0) == (bias == 0) or abs(bias) < 1e-30


@pytest.mark.parametrize("bits", range(8, 33))
def test_every_code_of_a_bias_survives_float32(bits):
    low, high = bias_range(bits)
    assert torch.tensor([low, high], dtype=torch.float32).to(torch.int32).tolist() == [low, high]
    assert low == -(2 ** (bits - 1))
    following = np.nextafter(np.float32(high), np.float32(np.inf))
    assert high == 2 ** (bits - 1) - 1 or following == 2 ** (bits - 1)  # none is left out that float32 holds


@settings(deadline=None, max_examples=20)
@given(size=st.floats(-4, 6), seed=st.integers(0, 1000))
def test_a_simulated_bias_is_an_integer_at_the_scale_of_the_accumulator(size, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        model[0].bias.mul_(10**size)
    wrapped = edgeq.PTCFxModule(model, bias_calibration_factor=0.0).calibrate([torch.randn(8, 4)])
    (layer,) = wrapped.module.quantized_layers()
    scale = layer.site.source.scale * layer.weight_quantizer.scale
    codes = layer.bias_codes(layer.bias)
    assert torch.equal(codes, torch.round(layer.bias / scale))  # nothing saturates
    assert codes.abs().max() <= LARGEST_BIAS + 4  # three roundings of scales to float32
    assert torch.allclose(layer.quantized_bias(layer.bias), codes * scale, rtol=1e-6, atol=0)
    with torch.no_grad():
        output = layer.simulated(torch.zeros(1, 4))
    assert torch.allclose(output, (codes * scale)[None], rtol=1e-6, atol=0)
