"""Modules and functions that PyTorch computes in one opaque call, written out in operations that are quantized.

While a model is traced, a module whose forward is the one of a class in `MODULES`, or a call of a function in
`FUNCTIONS` or of a method in `METHODS`, is replaced by the function here. They compute over the module's own
parameters, so that no key of its state dict changes. A further one registers itself with `decomposes` or `replaces`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx, nn

from edgeq.modules.torch_class import overrides

MODULES: dict[type[nn.Module], Callable[..., Any]] = {}
FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {}
METHODS: dict[str, Callable[..., Any]] = {}
REFUSALS: dict[type[nn.Module], Callable[[Any], bool]] = {}


def decomposes(
    *classes: type[nn.Module], unless: Callable[[Any], bool] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function of a module and its arguments for modules of `classes`, but not those that `unless` is
    true for.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        MODULES.update(dict.fromkeys(classes, function))
        if unless is not None:
            REFUSALS.update(dict.fromkeys(classes, unless))
        return function

    return register


def decomposition_of(module: nn.Module) -> Callable[..., Any] | None:
    """What stands for the forward of `module`; None where it is traced, or called, as it is. A subclass that computes
    anything in a way of its own is its own matter.
    """
    for cls in type(module).__mro__:
        if cls in MODULES:
            own = "forward" in vars(module) or overrides(type(module), cls)
            return None if own or (cls in REFUSALS and REFUSALS[cls](module)) else MODULES[cls]
    return None


def replaces(
    *functions: Callable[..., Any], methods: Iterable[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function that stands for calls of others, and of methods of tensors. Where it returns
    NotImplemented the call stays as it is.
    """

    def register(own: Callable[..., Any]) -> Callable[..., Any]:
        FUNCTIONS.update(dict.fromkeys(functions, own))
        METHODS.update(dict.fromkeys(methods, own))
        return own

    return register


class Replacing(fx.proxy.TracerBase):
    """A tracer that records what stands for a call instead of it."""

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        known: dict[Any, Any] = METHODS if kind == "call_method" else FUNCTIONS if kind == "call_function" else {}
        own = known.get(target)
        value = NotImplemented if own is None else own(*args, **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *rest, **options) if value is NotImplemented else value
