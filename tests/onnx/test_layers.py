"""Layers beyond those of the shared networks: they convert, export and agree, integer by integer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.onnx.ort import calibrated_on, codes_of, differences, nodes_of, numbers, producers, run, written


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Chain(nn.Module):
    """Layers with a ReLU between each two."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.parts):
            x = F.relu(layer(x)) if index + 1 < len(self.parts) else layer(x)
        return x


class Products(nn.Module):
    """A product of two activations, batched."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(self.left(x), self.right(x).transpose(1, 2))


class Moves(nn.Module):
    """Concatenation, padding, pooling, slicing and shuffling of codes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.pool, self.pad, self.shuffle = nn.MaxPool2d(3, 2, 1), nn.ZeroPad2d(1), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.a(x)), self.b(x)], 1)
        return self.shuffle(self.c(self.pad(self.pool(x)))[:, :, 1:-1])


class Constants(nn.Module):
    """A table that is added, a factor a channel, and one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.register_buffer("table", values(1, 3, 8, 8, seed=1))
        self.factor = nn.Parameter(values(3, 1, 1, seed=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.conv(x) + self.table)) * self.factor


NETWORKS = {
    "grouped": (lambda: Chain(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8)), (4, 9, 9)),
    "strided and dilated": (lambda: Chain(nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 4, 3, dilation=2)), (4, 11, 11)),
    "transposed": (lambda: Chain(nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 6, 4, 2, 1)), (3, 8, 8)),
    "one dimension": (lambda: Chain(nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 4, 3, 2)), (3, 16)),
    "one dimension, transposed": (lambda: Chain(nn.Conv1d(3, 8, 3), nn.ConvTranspose1d(8, 4, 2, 2)), (3, 16)),
    "three dimensions": (lambda: Chain(nn.Conv3d(2, 6, 3, padding=1), nn.Conv3d(6, 4, 3, groups=2)), (2, 6, 6, 6)),
    "mirrored edges": (lambda: Chain(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")), (3, 8, 8)),
    "linear on three dimensions": (lambda: Chain(nn.Linear(6, 8), nn.Linear(8, 4, bias=False)), (5, 6)),
    "products": (Products, (5, 6)),
    "moves": (Moves, (3, 16, 16)),
    "constants": (Constants, (3, 8, 8)),
}


def made(name):
    torch.manual_seed(3)
    build, shape = NETWORKS[name]
    x = values(4, *shape)
    return build(), x


@pytest.mark.parametrize("preset", ["DEFAULT", "WC8SYMP2_AT8SYMP2"])
@pytest.mark.parametrize("kind", ["qdq", "integer"])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_integer_differs(name, kind, preset):
    model, x = made(name)
    module = calibrated_on(model, x, preset=preset).convert()
    other = torch.cat([x, values(*x.shape, seed=5)])
    file = written(module, x, format=kind, dynamic_batch=True)
    for fused in (False, True):
        theirs = run(file, other, fused=fused)
        steps = differences(codes_of(module, other), theirs)
        assert len(steps) >= 2
        assert {tensor: int(values.max()) for tensor, values in steps.items() if values.any()} == {}
        assert np.array_equal(theirs["output"], module(other).numpy())


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("grouped", {"QLinearConv": 2}),
        ("one dimension", {"QLinearConv": 2}),
        ("three dimensions", {"QLinearConv": 2}),
        ("linear on three dimensions", {"MatMulInteger": 2}),
        ("products", {"MatMulInteger": 2, "QLinearMatMul": 1}),
        ("moves", {"QLinearConv": 3, "Concat": 1, "MaxPool": 1, "Pad": 1, "Slice": 1, "DepthToSpace": 1}),
        ("transposed", {"QLinearConv": 1, "ConvTranspose": 1}),
    ],
)
def test_an_integer_file_holds_the_integer_operator_of_each_layer(name, operators):
    model, x = made(name)
    file = written(calibrated_on(model, x), x, format="integer", verify=False)
    assert {kind: len(nodes_of(file, kind)) for kind in operators} == operators
    assert len(nodes_of(file, "Conv")) == len(nodes_of(file, "Gemm")) == len(nodes_of(file, "MatMul")) == 0


def test_operations_that_only_move_values_work_on_codes_in_an_integer_file():
    model, x = made("moves")
    file = written(calibrated_on(model, x), x, format="integer", verify=False)
    for kind in ("Concat", "MaxPool", "Pad", "Slice", "DepthToSpace"):
        (node,) = nodes_of(file, kind)
        assert node.output[0].endswith("/codes")
    (pad,) = nodes_of(file, "Pad")
    assert int(numbers(file)[pad.input[2]]) == int(numbers(file)["a_zero_point"])


def test_a_transposed_convolutions_weight_is_dequantized_along_its_second_dimension():
    model, x = made("transposed")
    file = written(calibrated_on(model, x), x, verify=False)
    dequantizer = producers(file)[nodes_of(file, "ConvTranspose")[0].input[1]]
    weight, scale = (numbers(file)[name] for name in dequantizer.input[:2])
    assert [attribute.i for attribute in dequantizer.attribute if attribute.name == "axis"] == [1]
    assert (weight.shape, scale.shape) == ((8, 6, 4, 4), (6,))


def test_a_linear_layer_on_three_dimensions_stores_its_weight_as_the_product_reads_it():
    model, x = made("linear on three dimensions")
    file = written(calibrated_on(model, x), x, verify=False)
    assert nodes_of(file, "Transpose") == []
    assert numbers(file)["parts.0.weight.transposed"].shape == (6, 8)


def test_a_grouped_transposed_convolution_agrees_too():
    torch.manual_seed(0)
    x = values(4, 4, 8, 8)
    module = calibrated_on(Chain(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2)), x).convert()
    theirs = run(written(module, x, verify=False), x, fused=False)
    assert not any(steps.any() for steps in differences(codes_of(module, x), theirs).values())
