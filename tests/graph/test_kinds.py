"""Tensors that are not floating point are never touched; what is floating is found without running the network."""

import pytest
import torch
from torch import nn

import edgeq
from edgeq.graph.kinds import bundles, floating_nodes
from edgeq.graph.trace import trace
from tests.graph.parity import assert_exact, calibrated, group_of, images


class Mixed(nn.Module):
    """Integers, masks and indices among floating values."""

    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(10, 4), nn.Linear(4, 4)
        self.register_buffer("steps", torch.arange(3))

    def forward(self, ids, x, mask, length=2):
        y = self.linear(self.table(ids) + x)
        places = torch.arange(ids.size(1)) + self.steps * length
        picked = y.gather(-1, ids.unsqueeze(-1) % 4) * mask.unsqueeze(-1)
        return {"y": y, "ids": ids * 2, "places": places, "best": y.argmax(-1), "picked": picked, "mask": ~mask}


def mixed_inputs():
    ids = torch.tensor([[1, 5, 9], [0, 2, 2]])
    return ids, images(2, 3, 4), ids > 1


def test_integers_and_masks_pass_untouched():
    torch.manual_seed(0)
    model, inputs = Mixed().eval(), mixed_inputs()
    wrapped = calibrated(model, *inputs)
    assert_exact(wrapped, *inputs)
    found, expected = wrapped(*inputs), model(*inputs)
    assert {key: value.dtype for key, value in found.items()} == {key: v.dtype for key, v in expected.items()}
    for key in ("ids", "places", "mask"):
        assert torch.equal(found[key], expected[key])
        assert torch.equal(wrapped.convert()(*inputs)[key], expected[key])
    observed = [quantizer.name for quantizer in wrapped.module.quantizers() if quantizer.observed]
    assert observed == ["x", "table", "add", "linear", "mul"]  # the gather shares the linear layer's


def test_inputs_stay_what_they_were():
    model, inputs = Mixed().eval(), mixed_inputs()
    before = [value.clone() for value in inputs]
    wrapped = calibrated(model, *inputs)
    wrapped(*inputs)
    wrapped.convert()(*inputs)
    assert all(torch.equal(one, other) for one, other in zip(inputs, before, strict=True))


class Casting(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 6)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


@pytest.mark.parametrize("function", [
    lambda m, x: m.linear((x > 0).float()),
    lambda m, x: m.linear((x > 0).to(torch.float32)),
    lambda m, x: m.linear((x > 0).to(x.dtype)),
    lambda m, x: m.linear((x > 0).type_as(x)),
    lambda m, x: m.linear(torch.arange(6).float()) + m.linear(x),
    lambda m, x: m.linear(torch.arange(6, dtype=torch.float32)) + m.linear(x),
    lambda m, x: m.linear(torch.ones(1, 6)) + m.linear(x),
    lambda m, x: m.linear(x.max(0).values),
    lambda m, x: m.linear(x.sort(0)[0]),
    lambda m, x: m.linear(x.topk(2, 0).values),
    lambda m, x: m.linear(x) @ (x > 0).float().mT,
    lambda m, x: torch.cat([m.linear(x), (x > 0).float()], 1),
    lambda m, x: m.linear(x) * (x > 0),
])  # fmt: skip
def test_what_becomes_floating_is_quantized_where_a_layer_reads_it(function):
    model, x = Casting(function).eval(), images(6, 6)
    wrapped = calibrated(model, x, bias_calibration_factor=0)
    (found,) = assert_exact(wrapped, x)
    for layer in wrapped.module.quantized_layers():
        assert layer.site.source.observed
    assert (found - model(x)).norm() < 0.03 * model(x).norm()


def test_the_guess_about_each_node():
    model = Mixed()
    graph = trace(model)
    floating = {node.name for node in floating_nodes(graph, model)}
    assert {"x", "mask", "table", "linear", "gather", "mul"} <= floating  # a mask might be a floating one
    assert not floating & {"ids", "length", "arange", "size", "steps", "argmax", "mod", "unsqueeze"}


def test_inputs_that_are_only_taken_apart_are_bundles():
    def function(m, x):
        return x["a"] + x["b"]["c"][0] + x["b"]["d"].left

    graph = trace(Casting(function))
    assert {node.name for node in bundles(graph)} == {"x", "getitem_1", "getitem_2", "getitem_4", "getitem_5"}
    tensor = trace(Casting(lambda m, x: x[:, 0] + x.shape[0]))
    assert bundles(tensor) == set()


def test_a_layer_may_compute_in_another_floating_type_than_float32():
    model, x = Casting(lambda m, x: m.linear(x)).eval().double(), images(6, 6).double()
    wrapped = calibrated(model, x)
    assert wrapped(x).dtype is torch.float64
    assert all(quantizer.scale.dtype is torch.float32 for quantizer in wrapped.module.quantizers())
    assert group_of(wrapped, "linear") == "linear"


def test_an_input_that_never_came_as_a_floating_tensor_is_not_converted():
    model = Casting(lambda m, x: (m.linear(x["a"]), x["b"] + 1)).eval()
    inputs = {"a": images(6, 6), "b": torch.tensor([3, 4])}
    wrapped = calibrated(model, inputs)
    assert [quantizer.observed for quantizer in wrapped.module.quantizers()] == [True, True, False, False]
    found = assert_exact(wrapped, inputs)
    assert torch.equal(found[1], torch.tensor([4, 5]))
    assert isinstance(wrapped, edgeq.PTCFxModule)


def test_floats_between_integers_are_never_quantized():
    class Buckets(nn.Module):
        """Places whose distance grows with a logarithm, as T5 and MPNet have them."""

        def __init__(self):
            super().__init__()
            self.table, self.linear = nn.Embedding(8, 4), nn.Linear(4, 4)

        def forward(self, x):
            steps = torch.arange(x.size(1))
            far = (torch.log(steps.float() / 2) * 3).long() + 2
            places = torch.where(steps < 2, steps, torch.clamp(far, max=7))
            return self.linear(x) + self.table(places)

    torch.manual_seed(0)
    model, x = Buckets().eval(), images(2, 12, 4)
    wrapped = calibrated(model, x)
    assert_exact(wrapped, x)
    assert (wrapped(x) - model(x)).norm() < 0.02 * model(x).norm()
    assert {q.name for q in wrapped.module.quantizers()} & {"log", "mul", "div"} == set()
