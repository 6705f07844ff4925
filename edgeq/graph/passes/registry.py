"""What a rewrite of the graph declares, and which ones a user wants."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from edgeq.errors import SpecError, suggestion
from edgeq.registry import Registry

if TYPE_CHECKING:
    from edgeq.graph.passes.draft import Draft

Wanted = Mapping[str, bool | Mapping[str, Any]]  # a rewrite's name to whether it is wanted, or to its options


class Stage(IntEnum):
    """When a rewrite runs; those of one stage run by name."""

    TIDY = 1  # what does nothing goes, what stands side by side is joined
    REPLACE = 2  # an operation becomes another one
    FOLD = 3  # an operation goes into a layer next to it
    FINISH = 4  # what is left over gets a form of its own


@dataclass(frozen=True)
class Rewrite:
    """A rewrite: `function` makes the changes in a draft of the graph. `keeps` says whether the network computes the
    same afterwards, up to rounding; one that does not runs only on request. `changes` is what becomes what, in a
    few words. Its options are the keyword-only parameters of `function`.
    """

    name: str
    function: Callable[..., None]
    stage: Stage
    keeps: bool
    default: bool
    changes: str

    def __call__(self, draft: Draft, **options: Any) -> None:
        self.function(draft, **options)

    @property
    def options(self) -> dict[str, Any]:
        """Option names with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


REWRITES: Registry[Rewrite] = Registry("rewrite")


def rewrite(
    name: str, stage: Stage, changes: str, *, keeps: bool = True, default: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as the rewrite `name`. Raises SpecError for one that would change the function of the
    network without being asked.
    """
    if default and not keeps:
        raise SpecError(f"The rewrite {name!r} changes the function of a network: it cannot run by default.")

    def add(function: Callable[..., None]) -> Callable[..., None]:
        REWRITES.register(name)(Rewrite(name, function, stage, keeps, default, changes))
        return function

    return add


def rewrite_names() -> list[str]:
    """The names of all rewrites, in the order in which they run."""
    return [entry.name for entry in _in_order()]


def _in_order() -> list[Rewrite]:
    return sorted((REWRITES[name] for name in REWRITES), key=lambda entry: (entry.stage, entry.name))


def wanted_rewrites(wanted: Wanted | None) -> list[tuple[Rewrite, dict[str, Any]]]:
    """The rewrites to run, in order, with their options: those that run by default but for the ones that `wanted`
    says False to, and those that it says True to or gives options.

    Raises SpecError for a name or an option that is unknown, and for a value of another kind.
    """
    if wanted is not None and not isinstance(wanted, Mapping):
        raise SpecError(f"rewrites must be a dict of names to True, False or options, got {wanted!r}.")
    wanted = dict(wanted or {})
    for name, value in wanted.items():
        entry = REWRITES[name]
        if not isinstance(value, bool | Mapping):
            raise SpecError(f"rewrites[{name!r}] must be True, False or a dict of its options, got {value!r}.")
        for option in {} if isinstance(value, bool) else value:
            if option not in entry.options:
                raise SpecError(f"rewrites[{name!r}] has no option {option!r}. {suggestion(option, entry.options)}")
    values = [(entry, wanted.get(entry.name, entry.default)) for entry in _in_order()]
    return [(entry, {} if value is True else dict(value)) for entry, value in values if value is not False]
