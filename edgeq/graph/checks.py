"""What the graph of a captured model checks of its inputs, each time that it is called."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from edgeq.errors import TraceError


def require_value(value: Any, name: str, expected: Any) -> None:
    """Raises TraceError when an argument, or an item of one, is not what it was when the model was captured."""
    if value is not expected and not (isinstance(value, bool | int | float | str) and value == expected):
        given = repr(value) if isinstance(value, bool | int | float | str | None) else type(value).__name__
        raise TraceError(
            f"The argument {name!r} was {expected!r} when the model was captured, and cannot be another now, {given}. "
            "Give example_inputs that have it as it is to be, as a tuple or as a dict by name."
        )


def require_size(holds: bool, condition: str, *inputs: Tensor) -> None:
    """Raises TraceError for inputs of sizes with which a model may do something else than was captured."""
    if not holds:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise TraceError(
            f"The model looks at the sizes of its inputs, and was captured where {condition}. The inputs now, "
            f"{shapes}, may lead it another way: give example_inputs like them, of which another network is made, or "
            "write the model so that it does not ask."
        )


for _check in (require_value, require_size):
    fx.node.has_side_effect(_check)
