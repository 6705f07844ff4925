"""Which arguments of a model's forward are inputs of its graph, and which stay as they were when it was captured."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgeq.errors import SpecError, TraceError

EMPTY = inspect.Parameter.empty
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


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


def bound(model: nn.Module, example_inputs: Any) -> inspect.BoundArguments:
    """Example inputs as the arguments that they are for.

    Raises SpecError for inputs that the forward does not take.
    """
    signature = inspect.signature(model.forward)
    args, kwargs = as_call(example_inputs, _names(signature, example_inputs))
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise SpecError(f"{type(model).__name__}.forward{signature} does not take example_inputs: {error}.") from error


def _names(signature: inspect.Signature, example_inputs: Any) -> set[str]:
    """The names by which a dict may hold arguments; any others as well where the forward takes them and the dict has
    all that it needs.
    """
    parameters = signature.parameters.values()
    names = {parameter.name for parameter in parameters if parameter.kind not in VARIADIC}
    needed = {parameter.name for parameter in parameters if parameter.name in names and parameter.default is EMPTY}
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    has_needed = isinstance(example_inputs, dict) and needed <= set(example_inputs)
    return names.union(example_inputs) if takes_any and has_needed else names


Item = tuple[str, Any, Any]  # a name for messages, the proxy, and the value that it has in the example


@dataclass
class Arguments:
    """What a forward is called with to capture it: inputs of the graph, which `placeholder` makes of a name and a
    default, in the places of what the example inputs hold. Items that `is_fixed` is true for stay as they are.

    `leaves` are the items of the example inputs in the order in which torch.export takes them, `fixed` those that
    stay as they are, and the arguments that keep their defaults.
    """

    placeholder: Callable[[str, tuple[Any, ...]], Any]
    is_fixed: Callable[[Any], bool]
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    leaves: list[Item] = field(default_factory=list)
    fixed: list[Item] = field(default_factory=list)
    _has_default: bool = False

    def input(self, name: str, default: Any = EMPTY) -> Any:
        """A new input of the graph. Once one has a default all that follow need one too; a tensor cannot be one."""
        if default is EMPTY and not self._has_default:
            return self.placeholder(name, ())
        self._has_default = True
        return self.placeholder(name, (None if default is EMPTY or isinstance(default, Tensor) else default,))

    def given(self, name: str, example: Any, proxy: Any, stays: bool = False) -> Any:
        """The example with what is picked from its proxy in the place of each item, unless it `stays` as it is."""

        def item(path: tuple[Any, ...], leaf: Any) -> Any:
            found = name + pytree.keystr(path), _picked(proxy, example, path), leaf
            self.leaves.append(found)
            if not (stays or self.is_fixed(leaf)):
                return found[1]
            self.fixed.append(found)
            return leaf

        return pytree.tree_map_with_path(item, example)

    def kept(self, name: str, default: Any, proxy: Any) -> Any:
        """The default of an argument that is not in use."""
        self.fixed.append((name, proxy, None if isinstance(default, Tensor) else default))
        return default


def call_arguments(
    model: nn.Module,
    given: inspect.BoundArguments | None,
    placeholder: Callable[[str, tuple[Any, ...]], Any],
    is_fixed: Callable[[Any], bool],
) -> Arguments:
    """What to capture the forward of `model` with. Every argument is an input of the graph; in use are those that are
    `given`, but for a count that is the default. Without example inputs (None) those without a default are, and those
    whose default is a float: what else has a default (None, a switch, a count) mostly decides what is computed, and
    keeps it.
    """
    found = Arguments(placeholder, is_fixed)
    values = {} if given is None else given.arguments
    parameters = inspect.signature(model.forward).parameters
    needed = [name for name, parameter in parameters.items() if parameter.default is EMPTY] or list(parameters)[:1]
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            if given is None:
                raise TraceError(
                    f"{type(model).__name__}.forward takes *{name}: give example_inputs, which say how many there are."
                )
            names = [f"{name}_{number}" for number in range(len(values.get(name, ())))]
            found.args += [
                found.given(each, example, found.input(each))
                for each, example in zip(names, values.get(name, ()), strict=True)
            ]
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            for key, example in values.get(name, {}).items():
                found.kwargs[key] = found.given(key, example, found.input(key))
        else:
            default = parameter.default
            value = found.input(name, default)
            is_count = isinstance(default, int) and values.get(name) == default
            if name in values:
                value = found.given(name, values[name], value, is_count)
            elif given is not None or not (name in needed or isinstance(default, float)):
                value = found.kept(name, default, value)
            if parameter.kind in POSITIONAL:
                found.args.append(value)
            else:
                found.kwargs[name] = value
    return found


def _picked(proxy: Any, example: Any, path: tuple[Any, ...]) -> Any:
    """What lies at a path of the example, picked from its proxy."""
    for part in path:
        fields = getattr(example, "_fields", None)  # of a named tuple, whose items can be picked as those of any other
        if fields is not None and hasattr(part, "name"):
            part = pytree.SequenceKey(fields.index(part.name))
        if hasattr(part, "name"):
            proxy, example = getattr(proxy, part.name), getattr(example, part.name)
        else:
            key = part.key if hasattr(part, "key") else part.idx
            proxy, example = proxy[key], example[key]
    return proxy


def decides(value: Any) -> bool:
    """Whether a value can do nothing in a forward but decide what is computed."""
    return value is None or isinstance(value, bool | str)
