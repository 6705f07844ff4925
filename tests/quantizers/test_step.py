"""Fake quantization that is differentiable in its grid: values of the definition, gradients of the formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.arithmetic import Rounding, fake_quantize, round_to_integer
from edgeq.quantizers import kernel, step
from edgeq.quantizers.kernel import Grid
from edgeq.quantizers.step import Manner
from tests.quantizers.layouts import LAYOUTS, normal
from tests.strategies import roundings

BOUNDS = [(None, None), (0.0, None), (0.0, 1.3), (-1.0, 1.0), (None, 0.7), (0.0, 600.0)]
CODES = [(-8, 7), (0, 15), (-3, 12)]


def formula(x, scale, lower, upper, manner, upstream):
    """The gradients in x, scale, lower and upper in double precision, element by element."""
    x, g, s = x.double(), upstream.double(), float(scale)
    held = x.clamp(manner.floor, manner.ceiling) if (manner.floor, manner.ceiling) != (None, None) else x
    ratio = held / s
    codes = round_to_integer((held.float() / scale), manner.rounding).double().clamp(lower, upper)
    above, below = ratio >= upper + manner.margin, ratio <= lower - manner.margin
    inside = ~(above | below)
    error = codes - ratio if manner.rounding_error else torch.zeros_like(codes)
    in_scale = torch.where(inside, error, torch.where(above, float(upper), float(lower)))
    passes = inside & (held == x)
    passes &= torch.ones_like(passes) if manner.floor is None else x > manner.floor
    passes &= torch.ones_like(passes) if manner.ceiling is None else x < manner.ceiling
    return g * passes, (g * in_scale).sum(), (g * below * s).sum(), (g * above * s).sum()


def found(function, x, scale, lower, upper, manner, upstream):
    values = [value.clone().requires_grad_() for value in (x, scale, lower, upper)]
    y = function(values[0], Grid(*values[1:]), manner)
    y.backward(upstream)
    return y.detach(), [value.grad for value in values]


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.11, 0.25, 0.3, 1.7]),
    codes=st.sampled_from(CODES),
    bounds=st.sampled_from(BOUNDS),
    rounding=roundings,
    margin=st.sampled_from([0.0, 0.5]),
    rounding_error=st.booleans(),
)
def test_values_and_gradients_are_those_of_the_formulas(seed, scale, codes, bounds, rounding, margin, rounding_error):
    manner = Manner(rounding, *bounds, margin, rounding_error)
    x, upstream = normal(300, seed=seed) * 0.4, normal(300, seed=seed + 1)
    scale, lower, upper = torch.tensor(scale), *(torch.tensor(float(code)) for code in codes)
    expected = formula(x, scale, lower, upper, manner, upstream)
    for function in (step.quantize, step.traceable):
        y, gradients = found(function, x, scale, lower, upper, manner, upstream)
        held = x if bounds == (None, None) else x.clamp(*bounds)
        assert torch.equal(y, fake_quantize(held, scale, torch.tensor(0), *codes, None, rounding))
        for mine, its in zip(gradients, expected, strict=True):
            assert torch.allclose(mine.double(), its.double(), rtol=1e-4, atol=1e-4 * float(upstream.abs().sum()) / 300)


def test_lsqs_gradient_by_hand():
    """Esser et al., equation 3: s = 0.5 and codes -8..7."""
    x = torch.tensor([0.6, -0.6, 0.8, 9.0, -9.0, 3.5, -4.0])
    _, (in_x, in_scale, *_) = found(
        step.quantize, x, torch.tensor(0.5), torch.tensor(-8.0), torch.tensor(7.0), Manner(), torch.ones(7)
    )
    assert in_x.tolist() == [1, 1, 1, 0, 0, 0, 0]
    expected = (1 - 1.2) + (-1 + 1.2) + (2 - 1.6) + 7 - 8 + 7 - 8
    assert in_scale.item() == pytest.approx(expected, abs=1e-5)


def test_the_slope_of_the_clamp_is_that_of_finite_differences():
    """Without the error of rounding, in s the gradient is of a smooth function: the clamp to s l and s u."""
    x, upstream, scale, h = normal(2000).double(), normal(2000, seed=1).double(), 0.37, 1e-6

    def clamped(s):
        return float((upstream * x.clamp(-8 * s, 7 * s)).sum())

    manner = Manner(rounding_error=False)
    ends = torch.tensor(-8.0), torch.tensor(7.0)
    _, (_, in_scale, *_) = found(step.quantize, x.float(), torch.tensor(scale), *ends, manner, upstream.float())
    assert in_scale.item() == pytest.approx((clamped(scale + h) - clamped(scale - h)) / (2 * h), rel=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codes", CODES)
def test_every_layout_gives_the_gradients_of_the_contiguous_tensor(layout, codes, monkeypatch):
    x = LAYOUTS[layout]()
    plain, upstream = x.clone(memory_format=torch.contiguous_format), normal(*x.shape, seed=1)
    numbers = torch.tensor(0.7), *(torch.tensor(float(code)) for code in codes), Manner()
    expected = found(step.traceable, plain, *numbers, upstream)
    for in_blocks in (True, False):
        if not in_blocks:
            monkeypatch.setattr(kernel, "in_blocks", lambda _: False)
        y, gradients = found(step.quantize, x, *numbers, upstream)
        assert torch.equal(y, expected[0])
        for mine, its in zip(gradients, expected[1], strict=True):
            assert torch.allclose(mine, its, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_blocks_are_pieces_of_one_sum(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, upstream = normal(3, 100_000), normal(3, 100_000, seed=1)
    numbers = torch.tensor(0.7), torch.tensor(-8.0), torch.tensor(7.0), Manner()
    (y, mine), (z, its) = (found(f, x, *numbers, upstream) for f in (step.quantize, step.traceable))
    assert torch.equal(y, z)
    assert all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(mine, its, strict=True))


SHAPES = {  # of a weight and of its scale: rows, columns, one for each entry, several pieces
    "rows": ((6, 4, 3, 3), (6, 1, 1, 1)),
    "columns": ((4, 6, 3, 3), (1, 6, 1, 1)),
    "entries": ((6, 4, 3), (6, 4, 1)),
    "pieces": ((8, 40_000), (8, 1)),
    "one channel": ((1, 40, 3), (1, 1, 1)),
    "one channel in pieces": ((1, 400_000), (1, 1)),
}


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_scale_of_several_numbers_gets_a_gradient_for_each(shape, negative):
    shape, scales = SHAPES[shape]
    x, upstream = normal(*shape), normal(*shape, seed=1)
    scale = 0.5 + normal(*scales, seed=2).abs() / 10
    scale[..., 0] *= -1 if negative else 1  # next to a norm with a negative gamma
    ends = torch.tensor(-8.0), torch.tensor(7.0), Manner()
    y, (in_x, in_scale, *_) = found(step.quantize, x, scale, *ends, upstream)
    assert torch.equal(y, (x / scale).round().clamp(-8, 7) * scale)
    assert in_scale.shape == scale.shape
    parts, whole = torch.broadcast_tensors(scale, x)
    for value in scale.flatten():
        here = parts == value
        grad, total, *_ = formula(whole[here], value, -8, 7, Manner(), upstream[here])
        assert torch.equal(in_x[here], grad.float())
        place = in_scale[scale == value]
        assert place.item() == pytest.approx(total.item(), rel=1e-3, abs=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_data_has_gradients_of_single_precision(dtype):
    x, upstream = normal(5000).to(dtype), normal(5000, seed=1).to(dtype)
    numbers = torch.tensor(0.7), torch.tensor(-8.0), torch.tensor(7.0), Manner()
    y, gradients = found(step.quantize, x, *numbers, upstream)
    _, expected = found(step.quantize, x.float(), *numbers, upstream.float())
    assert (y.dtype, gradients[0].dtype, gradients[1].dtype) == (dtype, dtype, torch.float32)
    assert torch.equal(gradients[0], expected[0].to(dtype))
    assert torch.equal(gradients[1], expected[1])


def test_nothing_of_an_empty_batch_moves_the_grid():
    numbers = torch.tensor(0.7), torch.tensor(-8.0), torch.tensor(7.0), Manner()
    _, gradients = found(step.quantize, torch.zeros(0, 3), *numbers, torch.zeros(0, 3))
    assert [gradient.tolist() for gradient in gradients[1:]] == [0.0, 0.0, 0.0]


def test_a_compiler_takes_the_form_that_it_can_follow():
    x, upstream = normal(1000), normal(1000, seed=1)
    numbers = torch.tensor(0.7), torch.tensor(-8.0), torch.tensor(7.0), Manner(Rounding.HALF_EVEN, 0.0, 4.1)
    compiled = torch.compile(step.quantize, backend="aot_eager", fullgraph=True)
    y, mine = found(compiled, x, *numbers, upstream)
    z, its = found(step.quantize, x, *numbers, upstream)
    assert torch.equal(y, z)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(mine, its, strict=True))
