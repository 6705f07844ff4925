"""Products of two quantized tensors are exact, in the simulation and converted."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edgeq
from edgeq.modules.matmul import QuantizedMatmul, integer_matmul
from tests.modules.oracle import extreme_codes, output_codes, real, set_codes


class Product(nn.Module):
    """A product of its two inputs, after a linear layer that keeps the network quantizable."""

    def __init__(self, operation, activation=None):
        super().__init__()
        self.anchor = nn.Linear(2, 2)
        self.operation, self.activation = operation, activation or nn.Identity()

    def forward(self, left, right, other):
        return self.activation(self.operation(left, right)), self.anchor(other)


def wrapped_product(operation, left, right, rounding="half_even", activation=None):
    model = Product(operation, activation)
    wrapped = edgeq.PTCFxModule(model, "WC8_AT8", {"rounding": rounding}, bias_calibration_factor=0)
    wrapped.train()
    wrapped(left, right, torch.randn(2, 2))
    wrapped.eval()
    (matmul,) = (module for module in wrapped.modules() if isinstance(module, QuantizedMatmul))
    return wrapped, matmul.site


def assert_exact(wrapped, site, shapes, rounding="half_even", **bounds):
    left, right = (
        extreme_codes(q, shape, seed) for q, shape, seed in zip((site.left, site.right), shapes, (1, 2), strict=True)
    )
    sums = torch.matmul(
        (left - int(site.left.zero_point)).double(), (right - int(site.right.zero_point)).double()
    ).long()
    factor = site.left.scale.numpy() * site.right.scale.numpy() / site.target.scale.numpy()
    expected = real(output_codes(sums, np.asarray(factor), site.target, 0, rounding, **bounds), site.target)
    inputs = real(left, site.left), real(right, site.right), torch.zeros(2, 2)
    with torch.no_grad():
        assert torch.equal(wrapped(*inputs)[0], expected)
        assert torch.equal(wrapped.convert()(*inputs)[0], expected)


SHAPES = {
    "matrices": ((4, 7), (7, 3)),
    "batches": ((2, 3, 4, 7), (2, 3, 7, 5)),
    "broadcast": ((2, 1, 4, 7), (3, 7, 5)),
    "matrix by batch": ((4, 7), (5, 7, 2)),
    "vector by matrix": ((7,), (7, 3)),
    "matrix by vector": ((2, 4, 7), (7,)),
    "vectors": ((7,), (7,)),
}
tensors = st.tuples(st.floats(-9, 0).map(lambda exponent: 2.0**exponent), st.integers(0, 255))


@pytest.mark.parametrize("name", SHAPES)
@settings(deadline=None, max_examples=15)
@given(left=tensors, right=tensors, target=tensors, rounding=st.sampled_from(["half_even", "half_up", "half_away"]))
def test_a_product_is_exact_for_any_shapes_scales_and_zero_points(name, left, right, target, rounding):
    shapes = SHAPES[name]
    wrapped, site = wrapped_product(torch.matmul, *(torch.randn(shape) for shape in shapes), rounding)
    set_codes(site.left, *left)
    set_codes(site.right, right[0], right[1] - 128, signed=True)
    set_codes(site.target, left[0] * right[0] * 400 * (1 + target[0]), target[1])
    assert_exact(wrapped, site, shapes, rounding)


@pytest.mark.parametrize("operation", [torch.bmm, lambda a, b: a @ b, lambda a, b: a.matmul(b)])
def test_every_spelling_of_a_product_is_quantized(operation):
    shapes = (3, 4, 5), (3, 5, 2)
    wrapped, site = wrapped_product(operation, *(torch.randn(shape) for shape in shapes))
    assert_exact(wrapped, site, shapes)


def test_an_activation_behind_a_product_bounds_its_codes():
    shapes = (3, 4, 5), (3, 5, 2)
    wrapped, site = wrapped_product(torch.matmul, *(torch.randn(shape) for shape in shapes), activation=nn.ReLU6())
    set_codes(site.target, 0.07, 11)
    assert (site.floor, site.ceiling) == (0.0, 6.0)
    assert_exact(wrapped, site, shapes, floor=0.0, ceiling=6.0)


def test_sums_beyond_two_to_the_24_are_exact_too():
    shapes = (2, 3, 700), (2, 700, 4)
    wrapped, site = wrapped_product(torch.matmul, *(torch.rand(shape) for shape in shapes))
    for factor in (site.left, site.right):
        set_codes(factor, 0.01, 0)
    set_codes(site.target, 0.01 * 0.01 * 2**18, 3)
    left, right = torch.full(shapes[0], 255), torch.full(shapes[1], 255)
    left[..., 0] = 254
    assert (left[0, 0] * right[0, :, 0]).sum() == 45517245  # odd, above 2**25
    assert_exact(wrapped, site, shapes)
    ends = torch.tensor(0.0), torch.tensor(255.0)
    found = integer_matmul(left.float(), right.float(), ends, ends)
    assert torch.equal(found, torch.full((2, 3, 4), 45517245).to(torch.float32))


@pytest.mark.parametrize("inputs", [258, 259])
def test_float32_is_left_exactly_where_it_might_lose_a_bit(inputs, monkeypatch):
    types = []
    matmul = torch.matmul
    monkeypatch.setattr(torch, "matmul", lambda a, b: types.append(a.dtype) or matmul(a, b))
    ends = torch.tensor(-255.0), torch.tensor(255.0)  # 255 * 255 * 258 is the last product below 2**24
    integer_matmul(torch.ones(1, inputs), torch.ones(inputs, 1), ends, ends)
    assert types == [torch.float32 if inputs == 258 else torch.float64]
