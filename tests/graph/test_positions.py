"""Positions are computed in float, whatever they are made of, and are constants to what reads them."""

import pytest
import torch
from torch import nn

from edgeq.graph.positions import POSITION
from tests.graph.parity import assert_exact, calibrated, group_of, images, relative_error


class Rotary(nn.Module):
    """A linear layer whose result is turned by the angles of rotary positions, made in the forward."""

    def __init__(self, trained=False):
        super().__init__()
        torch.manual_seed(0)
        frequencies = 10.0 ** -torch.linspace(0, 3, 8)
        self.frequencies = nn.Parameter(frequencies) if trained else frequencies
        if not trained:
            del self.frequencies
            self.register_buffer("frequencies", frequencies)
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        angles = torch.arange(x.size(1), device=x.device).float()[:, None] * self.frequencies
        angles = torch.cat([angles, angles], -1)
        y = self.first(x)
        left, right = y.chunk(2, -1)
        return self.last(y * angles.cos() + torch.cat([-right, left], -1) * angles.sin())


def test_angles_of_a_thousand_places_are_not_rounded_to_256_steps():
    model, x = Rotary().eval(), images(2, 1000, 16)
    wrapped = calibrated(model, x)
    assert [name for name in ("float_1", "getitem", "mul", "cat") if group_of(wrapped, name)] == []
    assert group_of(wrapped, "cos") is not None
    assert group_of(wrapped, "sin") is not None
    reasons = [line for line in wrapped.explain().splitlines() if POSITION in line]
    assert len(reasons) >= 3
    assert relative_error(assert_exact(wrapped, x), model(x)) < 0.03
    shorter = images(2, 37, 16, seed=1)
    assert relative_error(assert_exact(wrapped, shorter), model(shorter)) < 0.05


def test_what_is_trained_is_no_position():
    model, x = Rotary(trained=True).eval(), images(2, 10, 16)
    wrapped = calibrated(model, x)
    assert group_of(wrapped, "mul") is not None
    assert_exact(wrapped, x)


@pytest.mark.parametrize("opset", [17, 18])
def test_the_file_computes_the_same(tmp_path, opset):
    model, x = Rotary().eval(), images(2, 50, 16)
    wrapped = calibrated(model, x)
    assert wrapped.export(x, tmp_path / "model.onnx", opset_version=opset).passed
