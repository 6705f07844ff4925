"""What a model that torch.export recorded expects of the sizes of its inputs, as checks in its graph.

A forward that looks at sizes was recorded along one way through it. Another size may lead another way, or no size but
the example's was possible; a graph that took it without a word would compute something else than the model.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.printers import PythonPrinter
from torch.utils._sympy.reference import PythonReferenceAnalysis

from edgeq.graph.arguments import Item
from edgeq.graph.checks import require_size

TORCH = str(Path(torch.__file__).parent)
LIBRARY = f"{TORCH}/nn/"  # of modules and functions in Python: what they decide is part of the model
INTERPRETER = f"{TORCH}/_dynamo/"  # which decides in the place of Python when it reads bytecode


def decisions(exported: Any) -> list[Any]:
    """The conditions on sizes, as PyTorch's ShapeGuard, that code in Python was told to hold. Those that PyTorch's
    kernels have asked about are no part of what is computed, and what they need they check at each call.
    """
    guards = {id(guard): guard for environment in _environments(exported) for guard in environment.guards}
    files = {id(guard): getattr(guard.sloc.framework_loc, "filename", "") for guard in guards.values()}
    read_as_bytecode = any(file.startswith(INTERPRETER) for file in files.values())
    library = INTERPRETER if read_as_bytecode else LIBRARY
    return [
        guard
        for guard in guards.values()
        if files[id(guard)].startswith(library) or not files[id(guard)].startswith(TORCH)
    ]


def _environments(exported: Any) -> list[Any]:
    """Where the conditions of a recording are kept."""
    values = [node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"]
    sizes: list[Any] = [size for value in values if isinstance(value, Tensor) for size in value.shape]
    symbolic = [size.node for size in sizes if isinstance(size, torch.SymInt)]
    return list({id(node.shape_env): node.shape_env for node in symbolic}.values())


def fixed_sizes(exported: Any) -> int:
    """How many sizes the model has asked for as numbers."""
    return sum(isinstance(guard.expr, sympy.Eq) and guard.expr.rhs.is_number for guard in decisions(exported))


WHOLE: dict[Any, Callable[[Any, Any], Any]] = {math.ceil: lambda a, b: -(-a // b), math.floor: operator.floordiv}


class OnProxies(PythonReferenceAnalysis):
    """Arithmetic on sizes that are recorded; what PyTorch has of it takes numbers and symbols for quotients."""

    truediv = int_truediv = staticmethod(operator.truediv)
    ceil = ceil_to_int = staticmethod(lambda x, *_: -(-x // 1))
    floor = floor_to_int = staticmethod(lambda x, *_: x // 1)


def rounded_quotient(node: fx.Node) -> tuple[Callable[[Any, Any], Any], Any, Any] | None:
    """`ceil(a / b)` or `floor(a / b)` of whole sizes, as a division without a remainder, which stays open in whatever
    follows sizes later on, with a and b; None for any other node.
    """
    divide = WHOLE.get(node.target)  # type: ignore[arg-type]
    quotient = node.args[0] if divide is not None else None
    if not isinstance(quotient, fx.Node) or quotient.target is not operator.truediv:
        return None
    values = [item.meta.get("val") if isinstance(item, fx.Node) else item for item in quotient.args]
    if divide is None or not all(type(value) in (int, torch.SymInt) for value in values):
        return None
    return divide, quotient.args[0], quotient.args[1]


def check_sizes(exported: Any, items: list[Item], recorded: list[Any]) -> None:
    """Adds to the graph of the proxies in `items`, the inputs, checks of all that the recording expects; `recorded`
    are the tensors that it was made with, whose sizes are numbers or symbols.
    """
    known: dict[sympy.Symbol, fx.Proxy] = {}
    labels: dict[sympy.Symbol, sympy.Symbol] = {}
    conditions: list[tuple[Any, Any, str]] = []  # a proxy, what it must equal, and the name of the size
    for (name, proxy, _), value in zip(items, recorded, strict=True):
        sizes: Any = value.shape if isinstance(value, Tensor) else ()
        for dimension, size in enumerate(sizes):
            label = f"{name}.shape[{dimension}]"
            expected = size.node.expr if isinstance(size, torch.SymInt) else size
            if isinstance(expected, sympy.Symbol) and expected not in known:
                known[expected], labels[expected] = proxy.size(dimension), sympy.Symbol(label)
            else:
                conditions.append((proxy.size(dimension), expected, label))
    tensors = [proxy for (_, proxy, example) in items if isinstance(example, Tensor)]

    def value_of(expression: Any) -> Any:
        return sympy_interp(OnProxies, known, sympy.sympify(expression))

    def text_of(expression: Any) -> str:
        return PythonPrinter().doprint(sympy.sympify(expression).xreplace(labels))

    for size, expected, label in conditions:
        _require(size == value_of(expected), f"{label} == {text_of(expected)}", tensors)
    for guard in decisions(exported):
        if guard.expr.free_symbols <= known.keys():
            try:
                holds = value_of(guard.expr)
            except (fx.proxy.TraceError, TypeError):  # arithmetic that asks for numbers at once: it is not checked
                continue
            _require(holds, text_of(guard.expr) + _place(guard.sloc), tensors)


def _place(sloc: Any) -> str:
    """Where in the user's code a condition was asked for."""
    if sloc.maybe_user_loc:
        return f" ({sloc.maybe_user_loc.strip()})"
    frame = sloc.framework_loc
    return f" (in {frame.name}, {frame.filename}:{frame.lineno})"


def _require(holds: fx.Proxy, condition: str, tensors: list[fx.Proxy]) -> None:
    holds.tracer.create_proxy("call_function", require_size, (holds, condition, *tensors), {})
