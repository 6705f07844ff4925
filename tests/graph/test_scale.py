"""Time and memory grow with the number of layers, and no faster, from preparing to converting."""

import copy
import pickle
import time

import pytest
import torch
from torch import nn

import edgeq
from tests.graph.scale import assert_linear, calls, network

SMALL = {"residual": 16, "transformer": 4}
LARGE = [("residual", 1000), pytest.param("transformer", 300, marks=pytest.mark.sweep)]


def wrapped(model, is_qat):
    return edgeq.QATFxModule(model, total_epochs=2) if is_qat else edgeq.PTCFxModule(model)


@pytest.mark.parametrize("is_qat", [False, True])
@pytest.mark.parametrize("kind", SMALL)
def test_every_step_takes_time_in_proportion_to_the_layers(kind, is_qat):
    def costs(size):
        model, x = network(kind, size)
        made = {}
        found = {"prepare": calls(lambda: made.update(wrapped=wrapped(model, is_qat)))}
        quantized = made["wrapped"]
        found["train"] = calls(quantized.train)
        found["step"] = calls(lambda: quantized(x))
        found["end of calibration"] = calls(quantized.eval)
        found["evaluation"] = calls(lambda: quantized(x))
        found["convert"] = calls(lambda: made.update(converted=quantized.convert()))
        found["converted"] = calls(lambda: made["converted"](x))
        found["explain"] = calls(quantized.explain)
        found["copy"] = calls(lambda: copy.deepcopy(quantized))
        found["pickle"] = calls(lambda: pickle.loads(pickle.dumps(quantized)))
        return found

    assert_linear(costs, SMALL[kind])


@pytest.mark.parametrize("is_qat", [False, True])
@pytest.mark.parametrize(("kind", "size"), LARGE)
def test_a_thousand_layers_are_prepared_within_seconds(kind, size, is_qat):
    model, _ = network(kind, size)
    start = time.process_time()
    quantized = wrapped(model, is_qat)
    assert time.process_time() - start < 20
    assert len(quantized.module.quantized_layers()) >= size


class Functional(nn.Module):
    """Layers that are functions of attributes; each output is added to in place."""

    def __init__(self, layers):
        super().__init__()
        self.weights = nn.ParameterList(torch.eye(3)[:, :, None, None] / 2 for _ in range(layers))

    def forward(self, x):
        for weight in self.weights:
            y = torch.nn.functional.conv2d(x, weight)
            y += x / 2
            x = y
        return x


class Repeated(nn.Module):
    """One layer and one activation, again and again."""

    def __init__(self, calls):
        super().__init__()
        self.layer, self.activation, self.calls = nn.Conv2d(3, 3, 1), nn.GELU(), calls

    def forward(self, x):
        for _ in range(self.calls):
            x = x + 0.01 * self.activation(self.layer(x))
        return x


class Dense(nn.Module):
    """Each layer reads what all before it gave."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + index, 1, 1) for index in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Moved(nn.Module):
    """Values that are moved often, in front of what is quantized and of what is not."""

    def __init__(self, moves):
        super().__init__()
        self.first, self.last, self.moves = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), moves

    def forward(self, x):
        x = self.first(x)
        y = x.abs()
        for _ in range(self.moves):
            x, y = x.flip(-1), y.flip(-1)
        return self.last(x + y)


@pytest.mark.parametrize("make", [Functional, Repeated, Dense, Moved])
def test_other_networks_are_prepared_in_proportion_to_their_operations_as_well(make):
    assert_linear(lambda size: {"prepare": calls(lambda: edgeq.PTCFxModule(make(size).eval()))}, 50)
