"""Loading a checkpoint with a report of what became of each key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeq.errors import SpecError

CONTAINERS = ("state_dict", "model_state_dict", "model", "module")  # where trainers put a state dict in a checkpoint


@dataclass
class LoadReport:
    """The keys of a checkpoint and of the module, by what became of them; `mismatched` has (key, shape in the
    checkpoint, shape in the module).
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every key found its place."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} keys loaded"]
        for name in ("missing", "unexpected"):
            keys = getattr(self, name)
            lines += [f"{len(keys)} {name}: {', '.join(keys)}"] if keys else []
        lines += [f"{key} has shape {theirs}, the model {ours}" for key, theirs, ours in self.mismatched]
        return "\n".join(lines)


def load_weights(module: nn.Module, source: str | Path | Mapping[str, Any], strict: bool = False) -> LoadReport:
    """Loads the keys of `source` that fit. Raises SpecError for a file that cannot be read or holds no state
    dict, and, with `strict`, when not every key fits.
    """
    state = _state_dict(source)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    own = module.state_dict()
    report = LoadReport()
    fitting = {}
    for key, value in state.items():
        if key not in own:
            report.unexpected.append(key)
        elif value.shape != own[key].shape:
            report.mismatched.append((key, tuple(value.shape), tuple(own[key].shape)))
        else:
            fitting[key] = value
    report.missing = [key for key in own if key not in state]
    report.loaded = list(fitting)
    if strict and not report.complete:
        raise SpecError(f"The checkpoint does not fit, nothing was loaded.\n{report}")
    module.load_state_dict(fitting, strict=False)
    return report


def _state_dict(source: Any) -> dict[str, Tensor]:
    if isinstance(source, str | Path):
        try:
            source = torch.load(source, map_location="cpu", weights_only=True)
        except OSError as error:
            raise SpecError(f"The checkpoint {str(source)!r} cannot be read: {error.strerror}.") from error
        except (RuntimeError, EOFError, ValueError, KeyError) as error:
            raise SpecError(f"The checkpoint {str(source)!r} cannot be loaded: {error}.") from error
    if not isinstance(source, Mapping):
        raise SpecError(f"A checkpoint must be a path or a dict, got {type(source).__name__}.")
    for name in CONTAINERS:
        if isinstance(source.get(name), Mapping):
            source = source[name]
            break
    if not all(isinstance(value, Tensor) for value in source.values()):
        keys = [key for key, value in source.items() if not isinstance(value, Tensor)]
        raise SpecError(f"The checkpoint is no state dict: {', '.join(map(str, keys[:5]))} are no tensors.")
    return dict(source)
