"""The gradients of fake quantization are those of the clamp: one inside of the representable range, zero outside."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.arithmetic import Rounding
from edgeq.qparams import QParams
from edgeq.quantizers import kernel
from edgeq.quantizers.weight import round_weight
from tests.quantizers.layouts import LAYOUTS, normal
from tests.strategies import roundings, tensors

NUMBERS = st.one_of(st.floats(-50, 50, width=32), st.integers(-100, 100).map(lambda n: n / 2))


def qparams(scale=0.25, zero_point=3, low=-8, high=7):
    return QParams(torch.tensor(scale), *(torch.tensor(n, dtype=torch.int32) for n in (zero_point, low, high)))


def gradient(x, grid, *arguments, upstream=None):
    x = x.detach().requires_grad_()
    y = kernel.fake_quantize(x, grid, *arguments)
    y.backward(torch.ones_like(y) if upstream is None else upstream)
    return x.grad


@settings(deadline=None, max_examples=200)
@given(
    x=tensors(NUMBERS, min_size=1),
    scale=st.sampled_from([0.25, 0.3, 2.0]),
    bounds=st.sampled_from([(None, None), (0.0, None), (0.0, 6.0), (-1.0, 1.0), (None, 0.7)]),
    rounding=roundings,
)
def test_the_gradient_is_one_strictly_inside_of_the_range_and_of_the_activation(x, scale, bounds, rounding):
    grid = kernel.grid_of(qparams(scale), *bounds, rounding)
    low, high = (grid.lower - 0.5) * grid.scale, (grid.upper + 0.5) * grid.scale
    low = low if bounds[0] is None else low.clamp(min=bounds[0])
    high = high if bounds[1] is None else high.clamp(max=bounds[1])
    upstream = torch.arange(1.0, len(x) + 1)
    found = gradient(x, grid, rounding, *bounds, upstream=upstream)
    assert torch.equal(found, upstream * ((x > low) & (x < high)))


@pytest.mark.parametrize("bounds", [(None, None), (0.0, None), (0.0, 0.9), (-0.6, 0.6)])
def test_the_gradient_is_the_slope_of_the_clamp_in_float64(bounds):
    """Central differences of the function that straight-through estimation stands for."""
    x = torch.linspace(-4.0, 4.0, 1001, dtype=torch.float64) + 1e-4  # on no corner
    low, high = (-11 - 0.5) * 0.25, (4 + 0.5) * 0.25
    low, high = (low if bounds[0] is None else bounds[0]), (high if bounds[1] is None else bounds[1])
    step = 1e-6
    slope = ((x + step).clamp(low, high) - (x - step).clamp(low, high)) / (2 * step)
    found = gradient(x, kernel.grid_of(qparams(), *bounds), Rounding.HALF_EVEN, *bounds)
    assert found.dtype is torch.float64
    assert torch.allclose(found, slope, atol=1e-8)
    assert 0 < found.sum() < len(x)


def test_gradients_agree_with_torchs_own_off_ties():
    x = normal(10000)
    mine = gradient(x, kernel.grid_of(qparams()))
    other = x.clone().requires_grad_()
    torch.fake_quantize_per_tensor_affine(other, 0.25, 3, -8, 7).sum().backward()
    assert torch.equal(mine, other.grad)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_every_layout_are_those_of_the_contiguous_tensor(layout, monkeypatch):
    x = LAYOUTS[layout]()
    upstream = normal(*x.shape, seed=1)
    expected = gradient(x.clone(memory_format=torch.contiguous_format), kernel.grid_of(qparams()), upstream=upstream)
    assert torch.equal(gradient(x, kernel.grid_of(qparams()), upstream=upstream), expected)
    monkeypatch.setattr(kernel, "in_blocks", lambda _: False)
    assert torch.equal(gradient(x, kernel.grid_of(qparams()), upstream=upstream), expected)


def test_what_is_kept_for_the_gradient_does_not_follow_a_scale_that_moves():
    x = torch.tensor([0.1, 0.9, 1.2, 5.0], requires_grad=True)
    parameters = qparams()
    y = kernel.fake_quantize(x, kernel.grid_of(parameters))
    parameters.scale.mul_(100)
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]  # up to 4.5 steps of 0.25


@pytest.mark.parametrize(("scale", "inside"), [(0.25, [0, 1, 1, 1, 1, 0, 0, 0]), (-0.25, [0, 0, 0, 1, 1, 1, 1, 0])])
def test_a_weight_gets_the_gradient_of_the_clamp_also_at_a_signed_scale(scale, inside):
    weight = torch.tensor([[-2.2, -2.1, -1.9, 0.0, 1.8, 1.9, 2.1, 2.2]], requires_grad=True)  # -8.5 steps are 2.125
    y = round_weight(weight, torch.tensor([[scale]]), None, -8, 7, True)
    y.sum().backward()
    assert weight.grad.tolist() == [inside]
    assert torch.equal(y, (weight / scale).round().clamp(-8, 7) * scale)


def test_a_weight_that_cannot_clip_gets_the_whole_gradient():
    weight = normal(3, 5).requires_grad_()
    upstream = normal(3, 5, seed=1)
    round_weight(weight, torch.tensor(0.01), None, -8, 7, False).backward(upstream)
    assert torch.equal(weight.grad, upstream)
