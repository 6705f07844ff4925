"""Assignment to a part of a tensor as a function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx


def put(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of `x` in which ``x[index] = value`` holds."""
    if index is Ellipsis:  # all of it, which exporters do not write as an assignment
        is_tensor = isinstance(value, Tensor)
        return value.to(x.dtype).expand_as(x).clone() if is_tensor else torch.full_like(x, value)
    y = x.clone()
    y[index] = value
    return y


fx.wrap("put")
