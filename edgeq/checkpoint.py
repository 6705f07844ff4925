"""Loading a checkpoint with a report of what became of each key."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeq.errors import SpecError

CONTAINERS = ("state_dict", "model_state_dict", "model", "module")  # where trainers put a state dict in a checkpoint
PREFIXES = ("module.", "_orig_mod.")  # what wrappers put before each key: edgeq's, DDP, torch.compile


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
    own = module.state_dict()
    state = {_own_key(key, own): value for key, value in _state_dict(source).items()}
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
        reasons = "\n".join(str(report).splitlines()[1:])  # without the count of those that would have been loaded
        raise SpecError(f"The checkpoint does not fit, nothing was loaded:\n{reasons}")
    module.load_state_dict(fitting, strict=False)
    return report


def _state_dict(source: Any) -> dict[str, Tensor]:
    if isinstance(source, str | Path):
        try:
            source = torch.load(source, map_location="cpu", weights_only=True)
        except OSError as error:
            raise SpecError(f"The checkpoint {str(source)!r} cannot be read: {error.strerror}.") from error
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError) as error:
            raise SpecError(
                f"The checkpoint {str(source)!r} is no file of tensors that torch.save wrote "
                f"({type(error).__name__}). Of a model that was saved whole, save model.state_dict() instead."
            ) from error
    if not isinstance(source, Mapping):
        raise SpecError(f"A checkpoint must be a path or a dict, got {type(source).__name__}.")
    for name in CONTAINERS:
        if isinstance(source.get(name), Mapping):
            source = source[name]
            break
    wrong = [key for key, value in source.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if wrong:
        raise SpecError(f"The checkpoint is no state dict of names and tensors: see {', '.join(map(repr, wrong[:5]))}.")
    return dict(source)


def _own_key(key: str, own: Mapping[str, Any]) -> str:
    """The module's key that `key` means, without the prefixes of wrappers; `key` itself where there is none."""
    bare = key
    while bare not in own and bare.startswith(PREFIXES):
        bare = bare.partition(".")[2]
    return bare if bare in own else key
