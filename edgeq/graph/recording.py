"""How torch.export is asked to record a model, so that as many sizes as can be stay open."""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes
from torch.utils import _pytree as pytree

from edgeq.errors import TraceError
from edgeq.graph.sizes import fixed_sizes
from edgeq.modules.stubs import DeQuantStub, QuantStub

ALL_DIMENSIONS = 100


def record(model: nn.Module, given: inspect.BoundArguments) -> Any:
    """The recording (torch.export.ExportedProgram) of `model` with all sizes open; with the batch's only where
    torch.export finds no rule for the others, or none.

    Python runs the forward, so that whatever Python can do may be in it. Where that asks for a size as a number, as
    ``len(x)`` does, the bytecode is read instead, if it can be, and where it leaves more sizes open.

    Raises TraceError for a model that cannot be recorded.
    """
    if any(isinstance(module, QuantStub | DeQuantStub) for module in model.modules()):
        raise TraceError("torch.export does not see the stubs that mark a region.")
    reasons: list[TraceError] = []
    for most in (ALL_DIMENSIONS, 1, 0):
        try:
            exported = _export(model, given, most, strict=False)
        except TraceError as error:
            reasons.append(error)
            continue
        return _with_more_open(model, given, most, exported)
    raise reasons[0]


def _with_more_open(model: nn.Module, given: inspect.BoundArguments, most: int, exported: Any) -> Any:
    fixed = fixed_sizes(exported)
    if not fixed:
        return exported
    try:
        other = _export(model, given, most, strict=True)
    except TraceError:
        return exported
    return other if fixed_sizes(other) < fixed else exported


def _export(model: nn.Module, given: inspect.BoundArguments, most: int, strict: bool) -> Any:
    """A recording in which the first dimensions of each tensor, `most` at most, are open. Sizes of 0 and 1 are
    symbols as any others, so that a batch of one stands for any batch. What goes wrong is in the error: PyTorch
    prints it as well.
    """
    auto = torch.export.Dim.AUTO
    shapes = pytree.tree_map(
        lambda x: dict.fromkeys(range(min(x.dim(), most)), auto) if isinstance(x, Tensor) else None,
        dict(given.arguments),
    )
    quiet = contextlib.redirect_stderr(io.StringIO())
    with warnings.catch_warnings(), quiet, symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(model, given.args, given.kwargs, dynamic_shapes=shapes, strict=strict)
        except Exception as error:  # of many kinds, torch's and the model's own
            raise TraceError(f"torch.export: {[*str(error).strip().splitlines(), ''][0]}") from error
