"""Operations that only move or pick values, as functions of codes and of real numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edgeq.graph.hooks import without_hooks
from edgeq.graph.operators import Behaviour, behaviour_of, operator_of
from edgeq.graph.program import Reference
from edgeq.modules.codes import Codes, OnCodes
from edgeq.modules.max_pool import MaxPoolCodes


def mover(node: Any, module: nn.Module | None, codes: Codes) -> OnCodes:
    """The module that does to codes what the node of a prepared graph does to the numbers that they stand for."""
    on_reals = _function(node, module)
    row = operator_of(node, module)
    if behaviour_of(node, module) is Behaviour.CLIP and row.bounds is not None:
        floor, ceiling = row.bounds(node, module) or (None, None)
        return OnCodes(ClampCodes(codes.code_of(floor), codes.code_of(ceiling)), on_reals, codes)
    if row.name == "pad" and not _repeats(module, node):
        return OnCodes(PadCodes(getattr(module, "padding", None), int(codes.zero_point)), on_reals, codes)
    pooling = None if module is None else MaxPoolCodes.of_module(module)
    if pooling is not None:
        return OnCodes(pooling, on_reals, codes)
    needs_float = row.name in ("interpolate", "unfold") or "pool" in called_name(node, module)
    return OnCodes(_function(node, module), on_reals, codes, as_float=needs_float, centred=row.zeros)


def called_name(node: fx.Node, module: nn.Module | None) -> str:
    """The name of what a node calls, in lower case."""
    return (type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))).lower()


def _repeats(module: nn.Module | None, node: fx.Node) -> bool:
    """Whether a padding takes its values from the tensor itself."""
    if module is not None:
        return not hasattr(module, "value")
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    return mode != "constant"


def _function(node: Any, module: nn.Module | None) -> Callable[..., Any]:
    if module is not None:
        return without_hooks(copy.deepcopy(module))  # they would see codes
    return Method(str(node.target)) if node.op == "call_method" else Function(node.target)


@dataclass
class Method:
    """A method of a tensor as a function."""

    name: str

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, self.name)(*args, **kwargs)


@dataclass
class Function:
    """A function; pickled by name, since some of torch.nn.functional cannot be pickled themselves."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {"function": Reference(self.function)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.function = state["function"].resolve({})


@dataclass
class ClampCodes:
    """An activation function's bounds, on codes."""

    low: int | None
    high: int | None

    def __call__(self, codes: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.clamp(codes, self.low, self.high)


@dataclass
class PadCodes:
    """Padding with the code of zero; `padding` is a module's own, else it comes with the call."""

    padding: Any
    zero: int

    def __call__(self, codes: Tensor, pad: Any = None, mode: str = "constant", value: Any = None) -> Tensor:
        return functional.pad(codes, self.padding if pad is None else pad, value=self.zero)
