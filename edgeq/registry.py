"""Named algorithms that presets refer to, and that other packages can add to by decorator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from edgeq.errors import SpecError, suggestion

T = TypeVar("T", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Names to classes or functions of one kind. The options of an entry are its keyword-only parameters."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._bounds: dict[str, Mapping[str, tuple[float, float]]] = {}

    def register(self, name: str, bounds: Mapping[str, tuple[float, float]] | None = None) -> Callable[[T], T]:
        """Class or function decorator. `bounds` are those of options of a function; a class has them as an attribute.
        Raises SpecError when the name is taken: nothing is replaced silently.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise SpecError(f"The {self.kind} {name!r} is already registered as {self._entries[name]!r}.")
            self._entries[name] = entry
            self._bounds[name] = getattr(entry, "bounds", {}) if bounds is None else bounds
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

    def bounds(self, name: str) -> Mapping[str, tuple[float, float]]:
        """The least and greatest value of those options of an entry that have bounds."""
        return self._bounds.get(name, {})

    def options(self, name: str) -> dict[str, Any]:
        """Option names of an entry with their defaults."""
        parameters = inspect.signature(self[name]).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
