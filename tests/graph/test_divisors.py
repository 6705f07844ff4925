"""What is nothing but a divisor, and kept from zero or constant, has no codes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from edgeq.graph.divisors import DIVISOR
from tests.graph.parity import assert_exact, calibrated, images, relative_error


class Divided(nn.Module):
    """A convolution whose result is divided, in some spelling."""

    def __init__(self, divide):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.register_buffer("spread", torch.logspace(-4, 3, 8).reshape(8, 1, 1))
        self.divide = divide

    def forward(self, x):
        return self.last(self.divide(self, self.conv(x)))


KEPT = {
    "epsilon": lambda m, y: y / (F.relu(y).sum(1, keepdim=True) + 1e-5),
    "epsilon from the left": lambda m, y: y / (1e-5 + F.relu(y).sum(1, keepdim=True)),
    "epsilon, then moved": lambda m, y: y.div((F.relu(y).sum(1, keepdim=True) + 1e-5).expand(-1, 8, -1, -1)),
    "least": lambda m, y: y / y.abs().amax(1, keepdim=True).clamp(min=1e-5),
    "least by its own name": lambda m, y: y / y.abs().amax(1, keepdim=True).clamp_min(1e-5),
    "a norm by hand": lambda m, y: (y - y.mean(1, True)) / (y.var(1, keepdim=True) + 1e-3).sqrt(),
    "root": lambda m, y: y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt(),
    "inverse root": lambda m, y: y * (y.square().mean(1, keepdim=True) + 1e-3).rsqrt(),
    "inverse": lambda m, y: y * (y.square().mean(1, keepdim=True) + 1e-3).reciprocal(),
}
CONSTANT = {
    "constant": lambda m, y: y / m.spread,
    "computed constant": lambda m, y: y / (m.spread**0.5 * m.spread.sqrt() + 1e-8),
}
QUANTIZED = {
    "no epsilon": lambda m, y: y / F.softplus(y),
    "more than an epsilon": lambda m, y: y / (y.sigmoid() + 1.0),
    "read by another too": lambda m, y: (lambda d: y / d + d)(F.softplus(y) + 0.5),
    "divided itself": lambda m, y: (lambda d: d / F.softplus(y))(y + 0.5),
    "a negative number": lambda m, y: y / (-F.softplus(y) + -0.5),
    "of a layer": lambda m, y: y / (1.0 + torch.exp(m.last(y)).mean(1, keepdim=True) * 0.1 - 3.0),
}


@pytest.mark.parametrize("name", KEPT | CONSTANT)
def test_a_divisor_that_is_constant_or_kept_from_zero_stays_float(name):
    model, x = Divided((KEPT | CONSTANT)[name]).eval(), images(4, 3, 8, 8)
    wrapped = calibrated(model, x)
    assert f"stays float: {DIVISOR}" in wrapped.explain()
    assert relative_error(assert_exact(wrapped, x), model(x)) < 0.1


@pytest.mark.parametrize("name", QUANTIZED)
def test_other_divisors_are_quantized(name):
    model, x = Divided(QUANTIZED[name]).eval(), images(4, 3, 8, 8)
    wrapped = calibrated(model, x)
    assert DIVISOR not in wrapped.explain()
    assert_exact(wrapped, x)


def test_gradients_are_finite_where_the_sum_of_a_linear_attention_rounds_to_zero():
    class LinearAttention(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.qkv = nn.Linear(16, 48)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            q, k = F.relu(q - 1.5), F.relu(k - 1.5)  # seldom positive
            context = k.transpose(1, 2) @ F.pad(v * 100, (0, 1), value=1.0)
            y = q @ context
            return y[..., :-1] / (y[..., -1:] + 1e-5)

    wrapped = edgeq.QATFxModule(LinearAttention(), "WC8_AT8", total_epochs=1).train()
    output = wrapped(images(2, 10, 16))
    assert bool(output.isfinite().all())
    output.square().mean().backward()
    gradients = [parameter.grad for parameter in wrapped.parameters()]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
