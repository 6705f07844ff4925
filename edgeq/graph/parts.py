"""A network of which some submodules are quantized, while the rest of it stays the Python that it is."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgeq.backends import BackendSpec
from edgeq.errors import SpecError, TraceError, suggestion
from edgeq.graph.arguments import as_call, bound
from edgeq.graph.convert import ConvertedModule, convert
from edgeq.graph.explain import explain
from edgeq.graph.face import Faced
from edgeq.graph.prepare import prepare, shell_tree
from edgeq.graph.prepared import PreparedModule
from edgeq.graph.trace import trace
from edgeq.modules.layer import QuantizedLayer
from edgeq.modules.layers import QUANTIZED
from edgeq.phase import Phase, set_phase
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.recovery.calibration import Calibration
from edgeq.schedule import Schedule
from edgeq.spec import QConfig

logger = logging.getLogger(__name__)


class PartedModule(Faced):
    """A user's model with prepared modules at `paths`. It is used as a `PreparedModule` is; each part counts its
    own epochs, which are the same. What is no part trains in training, and evaluates while parts are calibrated.
    """

    paths: tuple[str, ...]
    is_qat: bool

    def __init__(self, face: nn.Module, paths: Iterable[str], is_qat: bool) -> None:
        super().__init__(face)
        self.__dict__.update(paths=tuple(paths), is_qat=is_qat)

    @property
    def parts(self) -> dict[str, PreparedModule]:
        """The prepared modules by their paths; one that stands at several places is there once."""
        found: dict[str, PreparedModule] = {}
        for path in self.paths:
            part: Any = self.get_submodule(path)
            if all(part is not other for other in found.values()):
                found[path] = part
        return found

    @property
    def schedule(self) -> Schedule:
        """The first part's: all are alike."""
        return next(iter(self.parts.values())).schedule

    @property
    def backend(self) -> BackendSpec:
        """What all parts are for."""
        return next(iter(self.parts.values())).backend

    @property
    def is_calibrated(self) -> bool:
        """Whether every part has ranges."""
        return all(part.is_calibrated for part in self.parts.values())

    def quantized_layers(self) -> list[QuantizedLayer]:
        """The layers with quantized weights, part by part."""
        return [layer for part in self.parts.values() for layer in part.quantized_layers()]

    def quantizers(self) -> list[TensorQuantizer]:
        """The quantizers of activations, part by part."""
        return [quantizer for part in self.parts.values() for quantizer in part.quantizers()]

    # ---- modes

    def train(self, mode: bool = True) -> PartedModule:
        """Changes the mode, of parts and of the rest."""
        for part in self.parts.values():
            part.train(mode)
        self._set_rest(mode)
        return self

    def apply_mode(self) -> None:
        """Sets phases and modes of everything below from the mode of this module."""
        for part in self.parts.values():
            part.training = self.training
            part.apply_mode()
        self._set_rest(self.training)

    def _set_rest(self, mode: bool) -> None:
        inside = {module for part in self.parts.values() for module in part.modules()}
        for module in (self.face, *self.face.modules()):
            if module not in inside:
                module.training = mode and self.is_qat
        self.training = mode

    def observe_in_any_mode(self) -> None:
        """Calibrates with all that runs through the parts, until they are finished by a conversion."""
        for part in self.parts.values():
            part.observe_in_any_mode()

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch it is; from then on ``train()`` counts for nothing."""
        for part in self.parts.values():
            part.set_epoch(epoch)

    def freeze(self, norms: bool | None, observers: bool | None) -> None:
        """Freezes (True) or unfreezes (False) by hand; None leaves the one as it is."""
        for part in self.parts.values():
            part.freeze(norms, observers)

    def finish(self) -> None:
        """Makes the ranges final for what was observed."""
        for part in self.parts.values():
            part.finish()

    # ---- the forward pass

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training and not self.is_qat:
            with torch.no_grad():
                return self.face(*args, **kwargs)
        return self.face(*args, **kwargs)

    def run_float(self, *args: Any, **kwargs: Any) -> Any:
        """The float network, whatever the mode."""
        modes = {module: module.training for module in (self.face, *self.modules())}
        for module in modes:
            module.training = False
        set_phase(self, Phase.FLOAT)
        try:
            return self.face(*args, **kwargs)
        finally:
            for module, mode in modes.items():
                module.training = mode
            self.apply_mode()


def prepare_parts(
    model: nn.Module,
    qconfigs: Mapping[str, QConfig],
    backend: BackendSpec,
    schedule: Schedule,
    factor: float,
    example_inputs: Any,
    **options: Any,
) -> PartedModule:
    """The network that `model` becomes when each submodule that `qconfigs` names is quantized as it says. It shares
    the model's parameters; the model itself stays a float network. `options` as for `prepare`.

    Raises SpecError for a name that is no submodule's, or that lies inside of another part, and what `prepare`
    raises for a part.
    """
    _check_paths(model, qconfigs)
    for qconfig in qconfigs.values():
        qconfig.require_rules_within(qconfigs)
    face, paths = _with_parts(model, qconfigs, backend, schedule, factor, example_inputs, **options)
    return PartedModule(face, paths, options["is_qat"])


def prepare_with_standalone(
    model: nn.Module,
    qconfig: QConfig,
    qconfigs: Mapping[str, QConfig],
    backend: BackendSpec,
    schedule: Schedule,
    factor: float,
    example_inputs: Any,
    untraced: Iterable[str | type[nn.Module]] = (),
    **options: Any,
) -> PreparedModule:
    """The network that `model` becomes as one graph under `qconfig`, in which each submodule that `qconfigs` names
    is one call of a network of its own, with real numbers going in and out. Raises what `prepare_parts` does.
    """
    _check_paths(model, qconfigs)
    everywhere = backend, schedule, factor, example_inputs
    face, paths = _with_parts(model, qconfigs, *everywhere, untraced=untraced, **options)
    for path in paths:
        part: Any = face.get_submodule(path)
        part.follows = True
    return prepare_whole(face, qconfig.without(paths), *everywhere, untraced=(*untraced, *paths), **options)


def _with_parts(
    model: nn.Module,
    qconfigs: Mapping[str, QConfig],
    backend: BackendSpec,
    schedule: Schedule,
    factor: float,
    example_inputs: Any,
    **options: Any,
) -> tuple[nn.Module, list[str]]:
    """An object of the class of `model` that has prepared modules in the places of those that are named, and all
    the paths where they stand.
    """
    inputs = {} if example_inputs is None else inputs_of(model, list(qconfigs), example_inputs)
    face = shell_tree(model)
    is_at: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        is_at.setdefault(id(module), []).append(path)
    paths: list[str] = []
    for path, qconfig in qconfigs.items():
        module = model.get_submodule(path)
        settings = qconfig.within(path), backend, copy.deepcopy(schedule), factor
        part = prepare_whole(module, *settings, example_inputs=inputs.get(path), **options)
        part.show_face_of(module)
        for place in is_at[id(module)]:
            face.set_submodule(place, part)
            paths.append(place)
    return face, paths


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
        logger.warning(
            "%s stays in Python, in float, around these parts, which are quantized by themselves: %s. %s",
            *(type(model).__name__, ", ".join(paths), error),
        )
        qconfigs = dict.fromkeys(paths, qconfig)
        return prepare_parts(model, qconfigs, backend, schedule, factor, example_inputs, **options)


def parts_of(model: nn.Module, untraced: Iterable[str | type[nn.Module]], example_inputs: Any) -> list[str]:
    """The paths of the largest submodules that can be captured and have layers to quantize, in order; of those that
    are called, where `example_inputs` show which are.
    """
    leaves = tuple(untraced)
    paths = [path for path, _ in model.named_modules()]
    inputs = None if example_inputs is None else inputs_of(model, paths, example_inputs)
    found: list[str] = []

    def visit(path: str, module: nn.Module) -> None:
        is_left = any(path == leaf if isinstance(leaf, str) else isinstance(module, leaf) for leaf in leaves)
        if is_left or not any(isinstance(layer, tuple(QUANTIZED)) for layer in module.modules()):
            return
        try:
            if inputs is not None and path not in inputs:
                raise TraceError(f"{path!r} is not called.")
            trace(module, leaves, None if inputs is None else inputs[path])
        except (TraceError, SpecError):
            for name, child in module.named_children():
                visit(f"{path}.{name}", child)
        else:
            found.append(path)

    for name, child in model.named_children():
        visit(name, child)
    return found


def _check_paths(model: nn.Module, paths: Iterable[str]) -> None:
    known = {path for path, _ in model.named_modules() if path}
    chosen = list(paths)
    for path in chosen:
        if path not in known:
            raise SpecError(f"submodules names {path!r}, which the model does not have. {suggestion(path, known)}")
        outer = next((other for other in chosen if path.startswith(f"{other}.")), None)
        if outer is not None:
            raise SpecError(f"submodules names {path!r}, which is inside of {outer!r}: name one of them.")


def inputs_of(model: nn.Module, paths: Iterable[str], example_inputs: Any) -> dict[str, dict[str, Any]]:
    """What each submodule is called with, the first time, when `model` runs on `example_inputs` in evaluation mode:
    arguments by name. Raises SpecError when it does not run.
    """
    found: dict[str, dict[str, Any]] = {}

    def note(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if path not in found:
            given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            found[path] = pytree.tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, dict(given))

    hooks = [
        model.get_submodule(path).register_forward_pre_hook(partial(note, path), with_kwargs=True) for path in paths
    ]
    modes = {module: module.training for module in model.modules()}
    args, kwargs = as_call(example_inputs, inspect.signature(model.forward).parameters)
    try:
        bound(model, example_inputs)
        model.eval()
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return found


class ConvertedParts(Faced):
    """A user's model with integer networks at `paths`."""

    paths: tuple[str, ...]

    def __init__(self, face: nn.Module, paths: tuple[str, ...]) -> None:
        super().__init__(face)
        self.__dict__["paths"] = paths
        self.eval()

    @property
    def parts(self) -> dict[str, ConvertedModule]:
        """The integer networks by their paths."""
        return {path: self.get_submodule(path) for path in self.paths}  # type: ignore[misc]

    def train(self, mode: bool = True) -> ConvertedParts:
        """There is nothing to train: all modules stay in evaluation mode."""
        for module in (self.face, *self.face.modules()):
            module.training = False
        self.training = mode
        return self


@torch.no_grad()
def convert_parts(network: PartedModule) -> ConvertedParts:
    """The network with its parts as integer networks. It stays as it is; nothing is shared.

    Raises CalibrationError when a part has no ranges yet.
    """
    memo: dict[int, Any] = {id(part): convert(part) for part in network.parts.values()}
    return ConvertedParts(copy.deepcopy(network.face, memo), network.paths)


def explain_parts(network: PartedModule) -> str:
    """The table of each part; the rest is the user's own."""
    tables = [f"{path} ({type(part.face).__name__})\n{explain(part)}" for path, part in network.parts.items()]
    rest = f"All else of {type(network.face).__name__} stays the Python that it is, in float."
    return "\n\n".join([*tables, rest])
