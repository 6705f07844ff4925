"""An item of a tuple, inside of tuples or not, as a function."""

from __future__ import annotations

from typing import Any


def part(values: Any, *path: int) -> Any:
    """``values[path[0]][path[1]]...``"""
    for index in path:
        values = values[index]
    return values
