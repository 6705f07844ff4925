"""Values compared: the greatest difference, also where both hold infinities, and what counts as rounding."""

import math

import pytest
import torch
from torch import fx, nn

import edgeq
from edgeq.graph.passes.compare import greatest_difference, in_evaluation, is_rounding

INF = float("inf")

fx.wrap("within")


def within(window, size):
    """Writes into the list that it was given."""
    for index, extent in enumerate(size):
        window[index] = min(window[index], extent)
    return window


@pytest.mark.parametrize(("before", "after", "expected"), [
    ([1.0, -3.0], [1.5, -3.0], (0.5, 3.0)),
    ([1.0, INF, -INF], [1.25, INF, -INF], (0.25, 1.0)),
    ([], [], (0.0, 0.0)),
])  # fmt: skip
def test_the_greatest_difference_and_the_greatest_value(before, after, expected):
    assert greatest_difference(torch.tensor(before), torch.tensor(after)) == expected


@pytest.mark.parametrize(("before", "after"), [([1.0, INF], [1.0, 2.0]), ([1.0], [float("nan")]), ([1.0], [1.0, 2.0])])
def test_numbers_that_only_one_has_are_no_rounding(before, after):
    difference, size = greatest_difference(torch.tensor(before), torch.tensor(after))
    assert math.isnan(difference)
    assert not is_rounding(difference, size, torch.float32)


def test_values_inside_of_containers_are_compared_and_integers_are_not():
    before = {"a": (torch.tensor([1.0]), torch.tensor([3])), "b": [torch.tensor([[5.0]])]}
    after = {"a": (torch.tensor([1.0]), torch.tensor([9])), "b": [torch.tensor([[5.5]])]}
    assert greatest_difference(before, after) == (0.5, 5.0)


def test_rounding_is_told_by_the_size_of_the_values_and_their_type():
    assert is_rounding(2e-5, 1.0, torch.float32)
    assert not is_rounding(3e-5, 1.0, torch.float32)
    assert is_rounding(2e-3, 100.0, torch.float32)
    assert not is_rounding(2e-5, 1.0, torch.float64)
    assert is_rounding(0.5, 1.0, torch.bfloat16)


def test_modes_are_as_before_afterwards():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[1].eval()
    with in_evaluation(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == [True, True, False]


def test_functions_may_write_into_the_lists_that_they_are_given():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            y = self.conv(x)
            height, width = within([8, 4], [y.shape[2], y.shape[3]])
            return self.last(y[:, :, :height, :width])

    x = torch.randn(2, 3, 6, 6)
    model = edgeq.PTCFxModule(Windows().eval(), example_inputs=x).calibrate([x])
    assert model(x).shape == model.convert()(x).shape == (2, 2, 6, 4)
    assert model(torch.randn(2, 3, 9, 9)).shape == (2, 2, 8, 4)
