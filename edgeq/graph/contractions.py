"""Sums of products in every spelling but `matmul`, written out as products of two tensors and what moves their values.

Each gives the same numbers, but for the order in which floating-point sums are made. What comes to no product of two
tensors (three operands, a diagonal) stays one call, in float.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from edgeq.graph.decompose import decomposes, replaces

Value = Any  # a proxy of a tensor, or a tensor

TRANSPOSED = {("t",), *(("transpose", *dims) for dims in ((0, 1), (1, 0), (-1, -2), (-2, -1)))}  # of a matrix


@replaces(torch.einsum)
def einsum(equation: str, *operands: Value) -> Value:
    """An equation of one or two operands as permutations, a matrix product, and permutations again."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    terms, output, ellipsis = _parsed(equation)
    if not terms or len(terms) != len(operands) or len(operands) > 2:
        return NotImplemented
    if len(operands) == 1:
        x, letters = _without(operands[0], terms[0], set(terms[0]) - set(output))
        return _arranged(x, letters, output, ellipsis)
    (left, right), (a, b) = operands, terms
    left, a = _without(left, a, set(a) - set(b) - set(output))
    right, b = _without(right, b, set(b) - set(a) - set(output))
    batch = "".join(letter for letter in output if letter in a and letter in b)
    rows = "".join(letter for letter in output if letter in a and letter not in b)
    columns = "".join(letter for letter in output if letter in b and letter not in a)
    summed = "".join(letter for letter in a if letter in b and letter not in output)
    left = _arranged(left, a, batch + rows + summed, ellipsis)
    right = _arranged(right, b, batch + summed + columns, ellipsis)
    product = _product(left, right, rows, columns, summed, bool(batch or ellipsis))
    return _arranged(product, batch + rows + columns, output, ellipsis)


def _parsed(equation: Any) -> tuple[list[str], str, bool]:
    """The letters of the operands, those of the result, and whether an ellipsis leads any; no operands for an
    equation that is none of those.
    """
    if not isinstance(equation, str):  # operands and lists of dimensions in turn
        return [], "", False
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        once = sorted(letter for letter in set(left) if letter.isalpha() and left.count(letter) == 1)
        output = ("..." if "..." in left else "") + "".join(once)
    ellipsis = "..." in left
    parts = [part.removeprefix("...") for part in (*terms, output)]
    plain = all(part.isalpha() or not part for part in parts) and all(len(set(part)) == len(part) for part in parts)
    return (parts[:-1], parts[-1], ellipsis) if plain and ellipsis == ("..." in output) else ([], "", False)


def _without(x: Value, letters: str, gone: set[str]) -> tuple[Value, str]:
    """The sum over dimensions that nothing else has."""
    if not gone:
        return x, letters
    kept = "".join(letter for letter in letters if letter not in gone)
    return x.sum([letters.index(letter) - len(letters) for letter in sorted(gone)]), kept


def _arranged(x: Value, letters: str, wanted: str, ellipsis: bool) -> Value:
    """The last dimensions of `x`, called `letters`, in the order of `wanted`."""
    moved = [index for index, (one, other) in enumerate(zip(letters, wanted, strict=True)) if one != other]
    if not moved:
        return x
    size = len(letters)
    if len(moved) == 2:
        return x.transpose(moved[0] - size, moved[1] - size)
    if not ellipsis:
        return x.permute([letters.index(letter) for letter in wanted])
    return x.movedim([letters.index(letter) - size for letter in wanted], list(range(-size, 0)))


def _product(left: Value, right: Value, rows: str, columns: str, summed: str, batched: bool) -> Value:
    """The product of (batch, rows, summed) and (batch, summed, columns): (batch, rows, columns)."""
    if not summed:
        for _ in columns:
            left = left.unsqueeze(-1)
        for _ in rows:
            right = right.unsqueeze(-1 - len(columns))
        return left * right
    row_sizes = [left.size(index - len(rows) - len(summed)) for index in range(len(rows))]
    column_sizes = [right.size(index - len(columns)) for index in range(len(columns))]
    left = _one_dimension(left, len(summed), 0)
    right = _one_dimension(right, len(summed), len(columns))
    is_matrix = not batched and len(columns) == 1  # then any number of rows go as they are
    if not is_matrix:
        left = _one_dimension(left, len(rows), 1)
        right = _one_dimension(right, len(columns), 0)
    product = torch.matmul(left, right)
    if is_matrix:
        return product
    if len(columns) != 1:
        product = product.unflatten(-1, column_sizes) if columns else product.squeeze(-1)
    if len(rows) != 1:
        at = -1 - len(columns)
        product = product.unflatten(at, row_sizes) if rows else product.squeeze(at)
    return product


def _one_dimension(x: Value, count: int, behind: int) -> Value:
    """`count` dimensions of `x`, in front of the last `behind` ones, as one."""
    if count == 0:
        return x.unsqueeze(-1 - behind)
    return x if count == 1 else x.flatten(-count - behind, -1 - behind)


@replaces(torch.matmul, torch.mm, operator.matmul, methods=("matmul", "mm"))
def matmul(left: Value, right: Value) -> Value:
    """A product with a matrix that is a parameter is a linear layer: its weight has a scale for each output."""
    weight = _transposed(right)
    return NotImplemented if weight is None else functional.linear(left, weight)


def _transposed(value: Value) -> Value:
    """The transpose of a matrix of parameters, or what a matrix is the transpose of; None for anything else."""
    if not isinstance(value, fx.Proxy):
        return None
    node = value.node
    turned = node.op == "call_method" and (node.target, *node.args[1:]) in TRANSPOSED
    turned = turned or (node.target is getattr and node.args[1] in ("T", "mT"))
    source: Any = value.tracer.proxy(node.args[0]) if turned else value  # type: ignore[arg-type]
    if not _is_parameter(source, dimensions=2):
        return None
    return source if turned else value.t()


def _is_parameter(value: Value, dimensions: int) -> bool:
    if not isinstance(value, fx.Proxy) or value.node.op != "get_attr":
        return False
    path, _, name = str(value.node.target).rpartition(".")
    tracer: Any = value.tracer
    parameter = tracer.root.get_submodule(path)._parameters.get(name)  # an attribute would be a proxy as well
    return parameter is not None and parameter.dim() == dimensions


@replaces(torch.addmm, torch.baddbmm, torch.addmv, methods=("addmm", "baddbmm", "addmv"))
def added_product(input: Value, left: Value, right: Value, *, beta: Any = 1, alpha: Any = 1) -> Value:  # noqa: A002
    """``beta * input + alpha * (left @ right)``; with parameters for all but `left` it is a linear layer."""
    weight = _transposed(right)
    if weight is not None and _is_parameter(input, dimensions=1) and beta == 1 and alpha == 1:
        return functional.linear(left, weight, input)
    product = _scaled(torch.matmul(left, right), alpha)
    return product if beta == 0 else product + _scaled(input, beta)


def _scaled(x: Value, factor: Any) -> Value:
    return x if isinstance(factor, int | float) and factor == 1 else x * factor


@replaces(torch.outer, torch.ger, methods=("outer", "ger"))
def outer(input: Value, vec2: Value) -> Value:  # noqa: A002
    """Every number of one vector times every number of the other."""
    return input.unsqueeze(1) * vec2.unsqueeze(0)


@replaces(functional.bilinear)
def bilinear(input1: Value, input2: Value, weight: Value, bias: Value = None) -> Value:
    """``input1 @ weight[o] @ input2`` for each output o: first all of the products with input1, in one."""
    outputs, right = weight.size(0), weight.size(2)
    first = torch.matmul(input1, weight.transpose(0, 1).flatten(1)).unflatten(-1, (outputs, right))
    product = torch.matmul(first, input2.unsqueeze(-1)).squeeze(-1)
    return product if bias is None else product + bias


@decomposes(nn.Bilinear)
def bilinear_module(module: nn.Bilinear, input1: Value, input2: Value) -> Value:
    """As the function."""
    return bilinear(input1, input2, module.weight, module.bias)
