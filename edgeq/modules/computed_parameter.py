"""A weight or bias that a model computes from its parameters in every forward pass, as one attribute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgeq.modules.exact import fingerprint


class ComputedParameter(nn.Module):
    """What `program` makes of attributes, each of a module that is not owned here, as they are now. Gradients reach
    the attributes. Without gradients the same tensor is given out until one of them changes.
    """

    def __init__(self, sources: list[tuple[nn.Module, str]], program: Any) -> None:
        super().__init__()
        self.sources, self.program = sources, program
        self._kept: tuple[Any, list[Tensor], Tensor] | None = None

    @property
    def value(self) -> Tensor:
        """The weight or bias."""
        tensors = [getattr(module, name) for module, name in self.sources]
        if torch.is_grad_enabled():
            return self.program.run(*tensors)
        key = fingerprint(tensors)
        if self._kept is None or self._kept[0] != key:
            self._kept = key, tensors, self.program.run(*tensors)
        return self._kept[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}
