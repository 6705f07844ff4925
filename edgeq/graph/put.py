"""Assignment to a part of a tensor as a function."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx


def put(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of `x` in which ``x[index] = value`` holds."""
    y = x.clone()
    y[index] = value
    return y


fx.wrap("put")
