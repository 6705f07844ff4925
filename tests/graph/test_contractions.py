"""Sums of products in other spellings than matmul: the same numbers, in products that are quantized."""

import pytest
import torch
from torch import fx, nn

from edgeq.graph.trace import trace
from edgeq.modules.matmul import QuantizedMatmul
from tests.graph.parity import assert_exact, calibrated, images, relative_error


class Of(nn.Module):
    """A function of two tensors that layers give."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(5, 5), nn.Linear(5, 5)
        self.function = function

    def forward(self, x, y):
        return self.function(self.left(x), self.right(y))


def whole_numbers(*shape, seed):
    """Small integers, whose sums are exact in any order."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


SIZES = dict(zip("abcdefgh", (2, 3, 4, 5, 2, 3, 4, 5), strict=True))
PAIRS = [  # equations of two operands, products all of them
    "ab,bc->ac", "ab,cb->ac", "ba,bc->ac", "ab,bc->ca", "ab,bc", "a,ab->b", "ab,b->a", "a,a->", "a,b->ab", "a,b->ba",
    "abc,acd->abd", "abc,adc->abd", "abc,bcd->abd", "abcd,abed->abce", "abcd,aecd->abe", "abcd,ebcd->ae",
    "abc,abc->abc", "abc,abc->ab", "abc,abc->", "abcd,cdef->abef", "abcd,dcef->feab", "abc,de->abcde", "abc,cd->abd",
    "abc,dc->dab",
    "abcd,cb->abd", "ab,acd->cbd", "abc,b->ac", "abc,d->ad", "abcd,eb->aecd", "abch,bdh->acbd", "a b , b c -> a c",
]  # fmt: skip
WITH_ELLIPSIS = [  # and the dimensions that it stands for, on the left and on the right
    ("...ab,...bc->...ac", (2, 3), (2, 3)), ("...ab,...cb->...ca", (2,), (3, 2)), ("...ab,bc->...ac", (2, 3), ()),
    ("ab,...bc->...ac", (), (2,)), ("...abc,...acd->...abd", (2,), (2,)), ("...a,...a->...", (2, 3), (2, 3)),
    ("...abc,...cda->...dab", (2,), (1,)), ("...a,a->...", (4,), ()), ("...a,...b->...ab", (2,), (2,)),
    ("...ab,...bc", (2,), (2,)),
]  # fmt: skip


def operands(equation, left=(), right=()):
    terms = equation.replace(" ", "").replace("...", "").partition("->")[0].split(",")
    shapes = [(*dims, *(SIZES[letter] for letter in term)) for dims, term in zip((left, right), terms, strict=False)]
    return [whole_numbers(*shape, seed=index) for index, shape in enumerate(shapes)]


def traced(function, inputs):
    """What a traced function gives, and the names of what it calls."""

    class Module(nn.Module):
        def forward(self, x, y=None):
            return function(x) if y is None else function(x, y)

    model = Module()
    graph = trace(model, example_inputs=tuple(inputs))
    names = [str(getattr(node.target, "__name__", node.target)) for node in graph.nodes if node.op.startswith("call")]
    return fx.GraphModule(model, graph)(*inputs), names


@pytest.mark.parametrize("equation", PAIRS)
def test_an_equation_of_two_operands_is_one_product(equation):
    inputs = operands(equation)
    found, names = traced(lambda x, y: torch.einsum(equation, x, y), inputs)
    assert torch.equal(found, torch.einsum(equation, *inputs))
    assert "einsum" not in names
    assert sum(name in ("matmul", "mul") for name in names) == 1


@pytest.mark.parametrize(("equation", "left", "right"), WITH_ELLIPSIS)
def test_an_ellipsis_stands_for_any_dimensions(equation, left, right):
    inputs = operands(equation, left, right)
    found, names = traced(lambda x, y: torch.einsum(equation, [x, y]), inputs)
    assert torch.equal(found, torch.einsum(equation, *inputs))
    assert "einsum" not in names


@pytest.mark.parametrize("equation", ["abc->cab", "abc->ac", "abc->", "...ab->...ba", "ab"])
def test_an_equation_of_one_operand_moves_and_adds(equation):
    inputs = operands(equation, (2,) if "..." in equation else ())
    found, names = traced(lambda x: torch.einsum(equation, x), inputs)
    assert torch.equal(found, torch.einsum(equation, *inputs))
    assert not {"einsum", "matmul", "mul"} & set(names)


@pytest.mark.parametrize("equation", ["aa->a", "aab,bc->ac", "a...,a...->a...", "ab,bc->"])
def test_other_equations_stay_what_they_are_or_are_sums_of_products(equation):
    inputs = [whole_numbers(3, 3, seed=1), whole_numbers(3, 3, seed=2)][: equation.count(",") + 1]
    inputs = [whole_numbers(3, 3, 3, seed=3), *inputs[1:]] if "aab" in equation else inputs
    found, _ = traced(lambda x, y=None: torch.einsum(equation, *inputs_of(x, y)), inputs)
    assert torch.equal(found, torch.einsum(equation, *inputs))


def inputs_of(x, y):
    return (x,) if y is None else (x, y)


def attention(x, y):
    scores = torch.einsum("bqhd,bkhd->bhqk", x.unflatten(-1, (1, 5)), y.unflatten(-1, (1, 5)))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), y.unflatten(-1, (1, 5))).flatten(2)


PRODUCTS = {
    "attention": (attention, 2, (2, 4, 5)),
    "rows and columns of two dimensions": (lambda x, y: torch.einsum("abc,dec->abde", x, y), 1, (2, 4, 5)),
    "addmm": (lambda x, y: torch.addmm(x, x, y), 1, (5, 5)),
    "baddbmm": (lambda x, y: torch.baddbmm(x, x, y, beta=0, alpha=0.4), 1, (2, 5, 5)),
    "method": (lambda x, y: x.baddbmm(x, y, beta=0.5), 1, (2, 5, 5)),
    "addmv": (lambda x, y: torch.addmv(x[0], x, y[0]), 1, (5, 5)),
    "bilinear": (lambda x, y: torch.nn.functional.bilinear(x, y, torch.ones(2, 5, 5) / 5), 2, (4, 5)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_two_layers_are_computed_in_integers(name):
    function, count, shape = PRODUCTS[name]
    model, inputs = Of(function).eval(), (images(*shape), images(*shape, seed=1))
    wrapped = calibrated(model, *inputs, bias_calibration_factor=0)
    assert sum(isinstance(module, QuantizedMatmul) for module in wrapped.modules()) == count
    assert not any(reason.startswith("stays float") for reason in wrapped.module.reasons.values())
    assert_exact(wrapped, *inputs)
    assert relative_error(wrapped(*inputs), model(*inputs)) < 0.06


class Conv1D(nn.Module):
    """A linear layer as some language models have it, with its weight laid out (inputs, outputs)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(3))
        self.weight.data *= torch.tensor([1.0, 30.0, 900.0])  # one scale for all would leave the first output nothing

    def forward(self, x):
        size = x.size()[:-1] + (3,)  # noqa: RUF005 - tracing follows this
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


def test_a_transposed_weight_has_a_scale_for_each_output_and_trains():
    model, x = Conv1D().eval(), images(2, 4, 5)
    wrapped = calibrated(model, x, bias_calibration_factor=0)
    (layer,) = wrapped.module.quantized_layers()
    assert layer.weight.shape == (3, 5)
    assert layer.weight_quantizer.scale.shape == (3,)
    assert wrapped.module.weight is model.weight
    (found,) = assert_exact(wrapped, x)
    assert (found - model(x)).abs().amax() < 2 * float(layer.site.target.scale)
    wrapped(x).sum().backward()
    expected = x.sum((0, 1))[:, None].expand(5, 3)
    assert (model.weight.grad - expected).norm() < 0.02 * expected.norm()
