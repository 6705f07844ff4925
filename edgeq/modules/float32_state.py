"""Buffers that stay float32 when the network around them is cast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Float32State(nn.Module):
    """A module whose buffers go where ``to()`` says, but keep their types: scales and ranges are float32 in the
    file and on the device, whatever the network trains in.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def moved(x: Tensor) -> Tensor:
            y = fn(x)
            return y if y.dtype == x.dtype else x.to(y.device)

        return super()._apply(moved, recurse)
