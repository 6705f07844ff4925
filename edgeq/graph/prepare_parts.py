"""Networks of which parts are prepared by themselves: with Python around them, or with another prepared network."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgeq.backends import BackendSpec
from edgeq.errors import NothingToQuantizeError, SpecError, TraceError
from edgeq.graph.arguments import as_call, bound, tried
from edgeq.graph.chosen import Choice
from edgeq.graph.face import own_names
from edgeq.graph.parts import PartedModule
from edgeq.graph.prepare import STORED, prepare, shell_tree
from edgeq.graph.prepared import PreparedModule
from edgeq.graph.trace import Tracer, trace
from edgeq.modules.layers import QUANTIZED
from edgeq.recovery.calibration import Calibration
from edgeq.schedule import Schedule
from edgeq.spec import QConfig

Untraced = Iterable[str | type[nn.Module]]

logger = logging.getLogger(__name__)


def prepare_whole(
    model: nn.Module,
    qconfig: QConfig,
    backend: BackendSpec,
    schedule: Schedule,
    factor: float,
    example_inputs: Any,
    **options: Any,
) -> PreparedModule:
    """The network that `model` becomes as one graph."""
    calibration = Calibration(factor, () if options["is_qat"] else qconfig.recovery)
    return prepare(model, qconfig, backend, schedule, calibration, example_inputs=example_inputs, **options)


def prepare_parts(
    model: nn.Module,
    choices: Sequence[Choice],
    backend: BackendSpec,
    schedule: Schedule,
    factor: float,
    example_inputs: Any,
    **options: Any,
) -> PartedModule:
    """The network that `model` becomes when each submodule of `choices` is quantized, and all else stays the Python
    that it is. It shares the model's parameters; the model itself stays a float network. `options` as for `prepare`.

    Raises SpecError for a rule that is for none of the parts, and what `prepare` raises for a part.
    """
    names = {path for path, _ in model.named_modules(remove_duplicate=False)}
    for choice in choices:
        choice.qconfig.require_rules_within(_alike(choices, choice.qconfig), names)
    face, paths = _with_parts(model, choices, backend, schedule, factor, example_inputs, **options)
    network = PartedModule(face, paths, options["is_qat"])
    for path, part in network.parts.items():
        if part.writes:
            logger.warning(
                "The part %r writes in place into its input %s; quantized, it does not. Code that reads the input "
                "later gets what it was before: write the part without the operation in place.",
                *(path, ", ".join(part.writes)),
            )
    return network


def prepare_with_standalone(
    model: nn.Module,
    qconfig: QConfig,
    choices: Sequence[Choice],
    backend: BackendSpec,
    schedule: Schedule,
    factor: float,
    example_inputs: Any,
    untraced: Untraced = (),
    **options: Any,
) -> PreparedModule:
    """The network that `model` becomes as one graph under `qconfig`, in which each submodule of `choices` is one call
    of a network of its own, with real numbers going in and out. Raises what `prepare_parts` does.
    """
    for choice in choices:
        if choice.qconfig != qconfig:
            choice.qconfig.require_rules_within(_alike(choices, choice.qconfig))
    everywhere = backend, schedule, factor, example_inputs
    face, paths = _with_parts(model, choices, *everywhere, untraced=untraced, **options)
    for path in paths:
        part: Any = face.get_submodule(path)
        part.follows = True
    inside = [path for path in paths if path in _alike(choices, qconfig)]
    return prepare_whole(face, qconfig.without(inside), *everywhere, untraced=(*untraced, *paths), **options)


def _alike(choices: Sequence[Choice], qconfig: QConfig) -> list[str]:
    """The paths of the submodules that are quantized under `qconfig`."""
    return [choice.path for choice in choices if choice.qconfig == qconfig]


def _with_parts(
    model: nn.Module,
    choices: Sequence[Choice],
    backend: BackendSpec,
    schedule: Schedule,
    factor: float,
    example_inputs: Any,
    untraced: Untraced = (),
    **options: Any,
) -> tuple[nn.Module, list[str]]:
    """An object of the class of `model` that has prepared modules in the places of those that are chosen, and all
    the paths where they stand.
    """
    inputs = {} if example_inputs is None else inputs_of(model, [choice.path for choice in choices], example_inputs)
    face = shell_tree(model)
    is_at: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        is_at.setdefault(module, []).append(path)
    paths: list[str] = []
    for choice in choices:
        module = model.get_submodule(choice.path)
        settings = choice.qconfig.within(choice.path), backend, copy.deepcopy(schedule), factor
        leaves = _untraced_within(choice.path, untraced)
        try:
            part = prepare_whole(module, *settings, inputs.get(choice.path), untraced=leaves, **options)
        except (SpecError, TraceError) as error:
            if choice.is_optional and (isinstance(error, NothingToQuantizeError) or not _has_layers(module)):
                continue
            raise type(error)(f"In the part {choice.path!r}: {error}") from error
        part.show_face_of(module)
        hidden = sorted(own_names(module) & {*dir(type(part)), *vars(part)})
        if hidden:
            names = ", ".join(hidden)
            logger.warning(
                "Code around the part %r finds edgeq's own attributes by these names: %s.", choice.path, names
            )
        places = [choice.path, *(path for path in is_at[module] if path != choice.path)]
        for path in places:
            face.set_submodule(path, part)
        paths += places
    if not paths:
        nothing = ", ".join(choice.path for choice in choices)
        raise NothingToQuantizeError(f"There is no layer that can be quantized in any of these parts: {nothing}.")
    return face, paths


def _has_layers(module: nn.Module) -> bool:
    return any(isinstance(layer, tuple(QUANTIZED) + tuple(STORED)) for layer in module.modules())


def _untraced_within(path: str, untraced: Untraced) -> tuple[str | type[nn.Module], ...]:
    """What of `untraced` is for the submodule at `path`, with names that begin there."""
    if path in untraced:
        raise SpecError(f"untraced names {path!r}, which is to be quantized by itself: it can be only one of the two.")
    here = (leaf for leaf in untraced if not isinstance(leaf, str) or leaf.startswith(f"{path}."))
    return tuple(leaf.removeprefix(f"{path}.") if isinstance(leaf, str) else leaf for leaf in here)


# ---- where the whole cannot be captured


def prepare_as_possible(
    model: nn.Module,
    qconfig: QConfig,
    backend: BackendSpec,
    schedule: Schedule,
    factor: float,
    example_inputs: Any,
    **options: Any,
) -> PreparedModule | PartedModule:
    """The network that `model` becomes, as one graph where it can be captured, else in as large parts as can be.
    What stays in Python then, and why, is logged. Raises TraceError when no part can be captured either.
    """
    try:
        return prepare_whole(model, qconfig, backend, schedule, factor, example_inputs, **options)
    except TraceError as error:
        paths = parts_of(model, options["untraced"], example_inputs)
        if not paths:
            raise
        choices = [Choice(path, None, qconfig) for path in paths]
        network = prepare_parts(model, choices, backend, schedule, factor, example_inputs, **options)
        hint = " Give example_inputs, so that only such are chosen as are called." if example_inputs is None else ""
        logger.warning(
            "%s stays in Python, in float, around these parts, which are quantized by themselves: %s.%s %s",
            *(type(model).__name__, ", ".join(network.parts), hint, error),
        )
        return network


def parts_of(model: nn.Module, untraced: Untraced, example_inputs: Any) -> list[str]:
    """The paths of the largest submodules that can be captured and have layers to quantize, in order, each once; of
    those that are called, where `example_inputs` show which are.
    """
    leaves = tuple(untraced)
    paths = [path for path, _ in model.named_modules()]
    inputs = None if example_inputs is None else inputs_of(model, paths, example_inputs)
    found: dict[nn.Module, str] = {}
    for name, child in model.named_children():
        _find_parts(name, child, leaves, inputs, found)
    return list(found.values())


def _find_parts(
    path: str,
    module: nn.Module,
    leaves: tuple[str | type[nn.Module], ...],
    inputs: dict[str, Any] | None,
    found: dict[nn.Module, str],
) -> None:
    is_left = any(path == leaf if isinstance(leaf, str) else isinstance(module, leaf) for leaf in leaves)
    if is_left or not _has_layers(module):
        return
    try:
        if inputs is not None and path not in inputs:
            raise TraceError(f"{path!r} is not called.")
        trace(module, _untraced_within(path, leaves), None if inputs is None else inputs[path])
    except (TraceError, SpecError):
        inside = () if Tracer().is_leaf_module(module, path) else module.named_children()
        for name, child in inside:  # PyTorch's own modules use what is inside of them without a call
            _find_parts(f"{path}.{name}", child, leaves, inputs, found)
    else:
        found.setdefault(module, path)


def inputs_of(model: nn.Module, paths: Iterable[str], example_inputs: Any) -> dict[str, Any]:
    """What each submodule is called with, the first time, when `model` runs on `example_inputs` in evaluation mode:
    a tuple of its arguments, or a dict of them by name. Raises SpecError when it does not run.
    """
    found: dict[str, Any] = {}

    def note(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if path not in found:
            given = inspect.signature(module.forward).bind(*args, **kwargs)
            call = dict(given.arguments) if given.kwargs else given.args
            found[path] = pytree.tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, call)

    hooks = [
        model.get_submodule(path).register_forward_pre_hook(partial(note, path), with_kwargs=True) for path in paths
    ]
    modes = {module: module.training for module in model.modules()}
    args, kwargs = as_call(example_inputs, inspect.signature(model.forward).parameters)
    try:
        bound(model, example_inputs)
        model.eval()
        with tried(example_inputs), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return found
