"""Which arguments of a model's forward are inputs of its graph, and which keep their defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from edgeq.errors import SpecError, TraceError

EMPTY = inspect.Parameter.empty
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def as_call(example_inputs: Any, names: Iterable[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as positional and keyword arguments: a tuple holds them in order, a dict whose keys are all
    among `names`, the arguments of the forward, by name; anything else is the first argument.
    """
    if isinstance(example_inputs, dict) and example_inputs and set(example_inputs) <= set(names):
        return (), dict(example_inputs)
    return (example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)), {}


def describe(inputs: Any) -> str:
    """Types and shapes of inputs, for messages."""
    leaves = pytree.tree_leaves(inputs)
    return ", ".join(f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x) for x in leaves)


@contextmanager
def tried(example_inputs: Any) -> Iterator[None]:
    """Where a model is run on example inputs: whatever goes wrong is raised as a SpecError that tells them."""
    try:
        yield
    except Exception as error:
        raise SpecError(f"The model does not run on example_inputs, {describe(example_inputs)}: {error}") from error


def bound(model: nn.Module, example_inputs: Any) -> dict[str, Any]:
    """Example inputs by the names of the arguments that they are for.

    Raises SpecError for inputs that the forward does not take.
    """
    signature = inspect.signature(model.forward)
    args, kwargs = as_call(example_inputs, signature.parameters)
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise SpecError(f"{type(model).__name__}.forward{signature} does not take example_inputs: {error}.") from error


def call_arguments(
    model: nn.Module, given: dict[str, Any] | None, placeholder: Callable[[str, tuple[Any, ...]], Any]
) -> tuple[list[Any], dict[str, Any], list[tuple[Any, str, Any]]]:
    """What to trace the forward of `model` with: positional and keyword arguments, and the inputs, each with its
    name and default, that are not in use.

    An argument is an input if it is in `given`, the example inputs by name. Without example inputs (None)
    those without a default are, and those whose default is a tensor or a float. What else has a default (None, a
    switch, a count) mostly decides what is computed, and keeps it.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    unused: list[tuple[Any, str, Any]] = []
    parameters = inspect.signature(model.forward).parameters
    first = next(iter(parameters), "")
    only_defaults = all(parameter.default is not EMPTY for parameter in parameters.values())
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            if given is None:
                raise TraceError(
                    f"{type(model).__name__}.forward takes *{name}: give example_inputs, which say how many there are."
                )
            args += [placeholder(f"{name}_{number}", ()) for number in range(len(given.get(name, ())))]
            continue
        default = parameter.default
        value = placeholder(name, () if default is EMPTY else (default,))
        wanted = (
            name in given
            if given is not None
            else isinstance(default, Tensor | float) or (only_defaults and name == first)
        )
        if default is not EMPTY and not wanted:
            unused.append((value, name, default))
            value = default
        if given is not None and name in given:
            value = _unpacked(given[name], value)
        if parameter.kind in POSITIONAL:
            args.append(value)
        else:
            kwargs[name] = value
    return args, kwargs, unused


def _unpacked(example: Any, proxy: Any) -> Any:
    """A proxy of a dict, list or tuple as one of proxies, so that the forward can iterate over it."""
    if isinstance(example, dict):
        return type(example)((key, _unpacked(item, proxy[key])) for key, item in example.items())
    if type(example) in (list, tuple):
        return type(example)(_unpacked(item, proxy[index]) for index, item in enumerate(example))
    return proxy


def require_default(value: Any, name: str, default: Any) -> None:
    """Raises TraceError when an argument that kept its default while the model was traced gets another value."""
    if value is not default and not (isinstance(value, bool | int | float | str) and value == default):
        raise TraceError(
            f"The argument {name!r} kept its default, {default!r}, when the model was traced, and cannot be another "
            f"now, {type(value).__name__}. Give example_inputs that have it, as a tuple or as a dict by name."
        )


fx.node.has_side_effect(require_default)
