"""A graph that is run node by node, as its Python code would run."""

from __future__ import annotations

from typing import Any

from torch import fx


class Interpreter(fx.Interpreter):
    """Hands lists and dicts over as plain ones: a function of the user's may write into those that it is given, and
    those of a graph's nodes are immutable.
    """

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return tuple(map(_plain, args)), {key: _plain(value) for key, value in kwargs.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
