"""The quick kernels give the numbers of `edgeq.arithmetic`, bit for bit, for every layout, type and rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq import arithmetic
from edgeq.arithmetic import Rounding
from edgeq.qparams import QParams
from edgeq.quantizers import kernel
from tests.quantizers.layouts import LAYOUTS, normal
from tests.strategies import numbers, roundings, scales, tensors


def qparams(scale, zero_point, quant_min, quant_max):
    integers = (torch.tensor(value, dtype=torch.int32) for value in (zero_point, quant_min, quant_max))
    return QParams(torch.tensor(scale), *integers)


AFFINE = qparams(0.037, 5, 0, 255)


@pytest.fixture(params=["one block", "many blocks", "one piece for several threads", "not in blocks"])
def way(request, monkeypatch):
    """Each way through the kernels."""
    if request.param == "many blocks":
        monkeypatch.setattr(kernel, "BLOCK", 7)
    elif request.param == "not in blocks":
        monkeypatch.setattr(kernel, "in_blocks", lambda _: False)
    elif request.param == "one piece for several threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kernel_is_its_definition(layout, dtype, rounding):
    x = LAYOUTS[layout]().to(dtype)
    before, zero_point = x.clone(), torch.tensor(5, dtype=torch.uint8)
    y = kernel.fake_quantize(x, kernel.grid_of(AFFINE), rounding)
    assert y.dtype is dtype
    assert torch.equal(y, arithmetic.fake_quantize(x, *AFFINE, None, rounding))
    codes = kernel.encode(x, AFFINE.scale, zero_point, 3, 250, rounding)
    assert codes.dtype is torch.uint8
    assert torch.equal(codes, arithmetic.quantize(x, *AFFINE[:2], 3, 250, None, rounding, torch.uint8))
    assert torch.equal(kernel.decode(codes, AFFINE.scale, zero_point), arithmetic.dequantize(codes, *AFFINE[:2]))
    assert torch.equal(kernel.centre(codes, zero_point), codes.float() - 5)
    centred = kernel.centred_codes(kernel.decode(codes, AFFINE.scale, zero_point), AFFINE.scale)
    assert torch.equal(centred, codes.float() - 5)
    assert torch.equal(x, before)


@settings(deadline=None, max_examples=300)
@given(x=tensors(numbers), scale=scales, zero_point=st.integers(-128, 127), rounding=roundings)
def test_fake_quantize_is_quantize_and_dequantize_for_any_number(x, scale, zero_point, rounding):
    """Law 1."""
    parameters = qparams(scale, zero_point, -128, 127)
    expected = arithmetic.fake_quantize(x, *parameters, None, rounding)
    assert torch.equal(kernel.fake_quantize(x, kernel.grid_of(parameters), rounding), expected)
    stored = parameters.zero_point.to(torch.int8)
    codes = kernel.encode(x, parameters.scale, stored, -128, 127, rounding)
    assert torch.equal(kernel.decode(codes, parameters.scale, stored), expected)


@settings(deadline=None, max_examples=200)
@given(x=tensors(numbers), bits=st.sampled_from([3, 4, 7, 8, 16]), rounding=roundings, data=st.data())
def test_any_number_of_bits_and_any_code_as_zero_point(x, bits, rounding, data):
    low, high = arithmetic.code_range(bits, signed=data.draw(st.booleans()))
    parameters = qparams(data.draw(scales), data.draw(st.integers(low, high)), low, high)
    expected = arithmetic.fake_quantize(x, *parameters, None, rounding)
    assert torch.equal(kernel.fake_quantize(x, kernel.grid_of(parameters), rounding), expected)


@settings(deadline=None, max_examples=300)
@given(
    x=tensors(st.one_of(numbers, st.integers(-600, 600).map(lambda n: n / 4))),
    scale=st.sampled_from([0.037, 0.5, 1.0, 2.0]),
    bounds=st.tuples(*[st.one_of(st.none(), st.integers(-300, 300).map(lambda n: n / 4))] * 2),
    rounding=roundings,
)
def test_bounds_of_an_activation_cut_the_grid_where_clamping_first_would(x, scale, bounds, rounding):
    floor, ceiling = sorted(bounds) if None not in bounds else bounds
    parameters = qparams(scale, -3, -128, 127)
    clamped = x if floor is None and ceiling is None else x.clamp(floor, ceiling)
    grid = kernel.grid_of(parameters, floor, ceiling, rounding)
    found = kernel.fake_quantize(x, grid, rounding, floor, ceiling)
    assert torch.equal(found, arithmetic.fake_quantize(clamped, *parameters, None, rounding))


def test_infinity_saturates_and_nan_stays_to_be_seen():
    x = torch.tensor([float("inf"), -float("inf"), float("nan")])
    y = kernel.fake_quantize(x, kernel.grid_of(AFFINE))
    assert torch.equal(y[:2], torch.tensor([250.0, -5.0]) * AFFINE.scale)
    assert y[2].isnan()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_order_is_kept_where_a_tensor_is_dense(layout):
    x = LAYOUTS[layout]()
    y = kernel.fake_quantize(x, kernel.grid_of(AFFINE))
    assert y.shape == x.shape
    assert not kernel.is_dense(x) or y.stride() == x.stride()
    with_gaps = "strided", "sliced inside", "expanded", "overlapping", "odd strides of size one"
    assert kernel.is_dense(x) is (layout not in with_gaps)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced"])
def test_overwriting_writes_the_result_into_its_input(layout):
    x = LAYOUTS[layout]()
    expected = arithmetic.fake_quantize(x, *AFFINE)
    y = kernel.fake_quantize(x, kernel.grid_of(AFFINE), overwrite=True)
    assert y.data_ptr() == x.data_ptr()
    assert torch.equal(x, expected)


def test_overwriting_a_slice_leaves_its_neighbours():
    whole = normal(6, 8)
    before = whole.clone()
    kernel.fake_quantize(whole[2:4], kernel.grid_of(AFFINE), overwrite=True)
    assert torch.equal(whole[:2], before[:2])
    assert torch.equal(whole[4:], before[4:])


def test_nothing_is_overwritten_where_a_gradient_is_wanted():
    x = normal(8).requires_grad_()
    before = x.detach().clone()
    kernel.fake_quantize(x, kernel.grid_of(AFFINE), overwrite=True).sum().backward()
    assert torch.equal(x.detach(), before)


def test_a_tensor_of_several_blocks_and_a_rest():
    x = normal(3 * kernel.BLOCK + 17)
    assert torch.equal(kernel.fake_quantize(x, kernel.grid_of(AFFINE)), arithmetic.fake_quantize(x, *AFFINE))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_accumulators_are_requantized_as_defined(channels_last, per_channel, rounding):
    sums = torch.randint(-40000, 40000, (5, 6, 3, 3), generator=torch.Generator().manual_seed(0)).float()
    sums = sums.to(memory_format=torch.channels_last) if channels_last else sums
    factor = torch.linspace(2.0**-11, 2.0**-8, 6) if per_channel else torch.tensor(2.0**-9)
    shaped = factor.reshape(-1, 1, 1) if per_channel else factor
    axis = 1 if per_channel else None
    zero_point = torch.tensor(-3, dtype=torch.int8)
    expected = arithmetic.requantize(sums, factor, zero_point, -100, 90, axis, rounding, torch.int8)
    centred = kernel.settle_accumulator(sums.clone(), shaped, -97.0, 93.0, rounding)
    assert torch.equal(centred, expected.float() + 3)
    real = kernel.settle_accumulator(sums.clone(), shaped, -97.0, 93.0, rounding, AFFINE.scale)
    assert torch.equal(real, arithmetic.dequantize(expected, AFFINE.scale, zero_point))
    codes = kernel.encode_accumulator(sums.clone(), shaped, zero_point, -100, 90, rounding)
    assert codes.dtype is torch.int8
    assert torch.equal(codes, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rounding", Rounding)
def test_a_gpu_gives_the_numbers_of_the_cpu(rounding):
    x = normal(1 << 20)
    on_gpu = QParams(*(value.cuda() for value in AFFINE))
    found = kernel.fake_quantize(x.cuda(), kernel.grid_of(on_gpu), rounding)
    assert torch.equal(found.cpu(), kernel.fake_quantize(x, kernel.grid_of(AFFINE), rounding))
