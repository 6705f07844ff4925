"""Named algorithms that presets refer to, and that other packages can add to by decorator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from edgeq.errors import SpecError, suggestion

T = TypeVar("T", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Names to classes or functions of one kind. The options of an entry are its keyword-only parameters."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class or function decorator. Raises SpecError when the name is taken: nothing is replaced silently."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise SpecError(f"The {self.kind} {name!r} is already registered as {self._entries[name]!r}.")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise SpecError(f"Unknown {self.kind} {name!r}. {suggestion(name, self._entries)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def options(self, name: str) -> dict[str, Any]:
        """Option names of an entry with their defaults."""
        parameters = inspect.signature(self[name]).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
