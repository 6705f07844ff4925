"""What a row of the table of operators may ask of a call: its arguments, its bounds, whether it only picks values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

Ends = tuple[float | None, float | None]
Bounds = Callable[[fx.Node, nn.Module | None], Ends | None]
Condition = Callable[[fx.Node, nn.Module | None], bool]

PARAMETERS = ((1, "weight"), (2, "bias"))  # positions and names of arguments of functional layers
DROPOUTS: dict[Any, type[nn.Module]] = {
    functional.dropout: nn.Dropout,
    functional.dropout1d: nn.Dropout1d,
    functional.dropout2d: nn.Dropout2d,
    functional.dropout3d: nn.Dropout3d,
    functional.alpha_dropout: nn.AlphaDropout,
    functional.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


# ---- bounds of activation functions


def constant_bounds(low: float | None, high: float | None) -> Bounds:
    """The same bounds for every call."""
    return lambda node, module: (low, high)


def hardtanh_bounds(node: fx.Node, module: nn.Module | None) -> Ends:
    """Those of the module or of the call; -1 and 1 by default."""
    if isinstance(module, nn.Hardtanh):
        return float(module.min_val), float(module.max_val)
    return float(argument(node, 1, "min_val", -1.0)), float(argument(node, 2, "max_val", 1.0))


def clamp_bounds(node: fx.Node, module: nn.Module | None) -> Ends | None:
    """Those of the call; None for tensors, which are no bounds of a range."""
    low, high = argument(node, 1, "min"), argument(node, 2, "max")
    if any(isinstance(bound, fx.Node) for bound in (low, high)):
        return None
    return (None if low is None else float(low)), (None if high is None else float(high))


def one_bound(low: bool) -> Bounds:
    """The bound of a call that has only a lower one, or only an upper one."""

    def bounds(node: fx.Node, module: nn.Module | None) -> Ends | None:
        bound = argument(node, 1, "min" if low else "max")
        if isinstance(bound, fx.Node):
            return None
        return (float(bound), None) if low else (None, float(bound))

    return bounds


# ---- conditions under which values are only moved or picked


def pads_with_zero(node: fx.Node, module: nn.Module | None) -> bool:
    """Any other number need not have a code."""
    if module is not None:
        return float(getattr(module, "value", 0.0)) == 0.0
    mode, value = argument(node, 2, "mode", "constant"), argument(node, 3, "value")
    return mode != "constant" or value is None or _is_zero(value)


def picks_neighbours(node: fx.Node, module: nn.Module | None) -> bool:
    """Nearest neighbours are picked; any other interpolation computes."""
    mode = module.mode if isinstance(module, nn.Upsample) else argument(node, 3, "mode", "nearest")
    return str(mode).startswith("nearest")


def returns_values_only(node: fx.Node, module: nn.Module | None) -> bool:
    """Not their places as well."""
    if module is not None:
        return not module.return_indices
    return not node.kwargs.get("return_indices", False)


def gives_values(node: fx.Node, module: nn.Module | None) -> bool:
    """x.T and x.max(1).values do; so does an attribute that tensors lack, of an input that is no tensor itself."""
    return node.args[1] in ("T", "mT", "H", "mH", "data", "values") or not hasattr(Tensor, str(node.args[1]))


def is_binary(node: fx.Node, module: nn.Module | None) -> bool:
    """torch.max(a, b) picks values; torch.max(a, dim) returns a pair and torch.max(a) reduces."""
    return isinstance(argument(node, 1, "other"), fx.Node)


def picks_codes(*places: tuple[int, str]) -> Condition:
    """Whether what the call puts among the values has a code for sure: a tensor of the group, or zero."""

    def holds(node: fx.Node, module: nn.Module | None) -> bool:
        values = [argument(node, *place) for place in places]
        return all(isinstance(value, fx.Node) or _is_zero(value) for value in values)

    return holds


def is_not_accumulating(node: fx.Node, module: nn.Module | None) -> bool:
    """torch.index_put can add to what is there."""
    return isinstance(argument(node, 2, "values"), fx.Node) and not argument(node, 3, "accumulate", False)


def keeps_values(node: fx.Node, module: nn.Module | None) -> bool:
    """A dropout does in evaluation, and a conversion to float32, or to a type that is known only later."""
    if node.op == "call_function" and node.target in DROPOUTS:
        return argument(node, 2, "training", True) is False
    named = [value for value in (*node.args, node.kwargs.get("dtype")) if isinstance(value, torch.dtype)]
    return all(dtype is torch.float32 for dtype in named)


def is_of_shape(node: fx.Node, row: str) -> bool:
    """Whether a call asks for what codes and the numbers that they stand for have in common; `row` is its name."""
    return row == "size" or (row == "attribute" and node.args[1] in ("shape", "ndim", "device", "is_cuda"))


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and float(value) == 0.0


def keeps_table(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a look-up leaves its table as it is."""
    return (argument(node, 3, "max_norm") if module is None else getattr(module, "max_norm", None)) is None


def is_module(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the call is that of a module, not one of its parts."""
    return module is not None
