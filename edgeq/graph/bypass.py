"""Code around a part that goes past its forward to what is inside."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from edgeq.errors import SpecError
from edgeq.graph.growing_tree import RESERVED
from edgeq.graph.program import Program


class Bypass:
    """While it is entered, refuses calls of modules inside of `parts` that come from outside of their forward. The
    graph of a part has taken over what its modules compute, a batch norm folded into a convolution, say, so that their
    own forwards are no longer right.
    """

    def __init__(self, parts: Mapping[str, Program]) -> None:
        self.parts = parts

    def __enter__(self) -> None:
        self.running: set[str] = set()
        self.hooks: list[Any] = []
        for path, part in self.parts.items():
            self.hooks.append(part.register_forward_pre_hook(partial(self._begin, path)))
            self.hooks.append(part.register_forward_hook(partial(self._end, path), always_call=True))
            for name, module in part.named_modules():
                if name and not name.startswith(RESERVED):
                    self.hooks.append(module.register_forward_pre_hook(partial(self._require, path, name)))

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _begin(self, path: str, *_: Any) -> None:
        self.running.add(path)

    def _end(self, path: str, *_: Any) -> None:
        self.running.discard(path)

    def _require(self, path: str, name: str, module: nn.Module, _: Any) -> None:
        if path not in self.running:
            raise SpecError(
                f"{f'{path}.{name}'!r} is called from outside of the forward of {path!r}, which is quantized as a "
                f"whole. Quantize what is called instead: submodules=[{f'{path}.{name}'!r}, ...]."
            )
