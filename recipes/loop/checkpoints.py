"""Checkpoints to go on from, bit for bit."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from recipes.loop import processes


class Stateful(Protocol):
    """What has a state to save: networks, optimizers, schedules."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Takes it over."""


def save(folder: Path, parts: Mapping[str, Stateful | None], origin: Mapping[str, Any], epoch: int) -> None:
    """Writes checkpoint.pth and model_<epoch>.pth, each whole or not at all. `origin` says what was trained."""
    if processes.rank() == 0:
        states = {name: part.state_dict() for name, part in parts.items() if part is not None}
        for name in (f"model_{epoch}.pth", "checkpoint.pth"):
            unfinished = folder / f".{name}.part"
            torch.save({**states, "origin": dict(origin), "epoch": epoch}, unfinished)
            os.replace(unfinished, folder / name)


def load(path: str | Path, parts: Mapping[str, Stateful | None], origin: Mapping[str, Any]) -> int:
    """Takes over the states of `parts`; returns the number of the epoch that comes next. Raises FileNotFoundError,
    or ValueError for what is no checkpoint, or that of another training.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{str(path)!r} is no checkpoint: {error}") from error
    if not isinstance(saved, dict) or "origin" not in saved:
        raise ValueError(f"{str(path)!r} is no checkpoint of this program. To begin with weights, give --weights.")
    for name, value in origin.items():
        if saved["origin"].get(name) != value:
            raise ValueError(
                f"The checkpoint {str(path)!r} is from a training with {name} {saved['origin'].get(name)!r}, this one "
                f"has {value!r}. Give the same options, or begin anew from its weights with --weights."
            )
    missing = [name for name, part in parts.items() if part is not None and name not in saved]
    if missing:
        raise ValueError(f"The checkpoint {str(path)!r} holds no {', '.join(missing)}: its training was without.")
    for name, part in parts.items():
        if part is not None:
            part.load_state_dict(saved[name])
    return saved["epoch"] + 1
