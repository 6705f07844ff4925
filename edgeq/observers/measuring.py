"""Observers that measure weights. A weight is there as a whole, so that nothing of it is ever kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from edgeq.observers.base import Observer
from edgeq.observers.registry import OBSERVERS

if TYPE_CHECKING:
    from edgeq.spec import Method, TensorSpec

_made: WeakValueDictionary[Any, Observer] = WeakValueDictionary()


def measuring(spec: TensorSpec, method: Method, axis: int | None = None) -> Observer:
    """The observer that `method` names, for its `measure` alone: of one range, or of one a slice along `axis`.

    Nothing changes in it, so all weights of one kind have the same one: it goes when the last of them goes. Whoever
    keeps it keeps its method, since a module that is an attribute of another adds buffers and keys to that one.
    """
    observer = OBSERVERS[method.name]
    key = observer, spec, method, axis
    made = _made.get(key)
    if made is None:
        _made[key] = made = observer(spec, axis=axis, **dict(method.options))
    return made
