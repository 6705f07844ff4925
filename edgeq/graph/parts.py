"""A network of which some submodules are quantized, while the rest of it stays the Python that it is."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from edgeq.backends import BackendSpec
from edgeq.graph.bypass import Bypass
from edgeq.graph.convert import ConvertedModule, convert
from edgeq.graph.explain import explain_part
from edgeq.graph.face import Faced
from edgeq.graph.prepared import PreparedModule
from edgeq.modules.layer import QuantizedLayer
from edgeq.modules.layers import shell
from edgeq.phase import Phase, set_phase
from edgeq.quantizers.scheme import Learner
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.schedule import Schedule


class PartedModule(Faced, Learner):
    """A user's model with prepared modules at `paths`. It is used as a `PreparedModule` is; each part counts the
    epochs and steps of the whole. What is no part trains in training, with batch norms as the schedule says, and
    evaluates while parts are calibrated.
    """

    paths: tuple[str, ...]
    is_qat: bool

    def __init__(self, face: Any, paths: Iterable[str], is_qat: bool) -> None:
        super().__init__(face)
        self.__dict__.update(paths=tuple(paths), is_qat=is_qat, _modes_seen=set())
        self.register_load_state_dict_post_hook(_after_loading)

    @property
    def parts(self) -> dict[str, PreparedModule]:
        """The prepared modules by their paths; one that stands at several places is there once."""
        return distinct(self, self.paths)

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
        self.training = mode
        self._set_rest()
        return self

    def apply_mode(self) -> None:
        """Sets phases and modes of everything below from the mode of this module."""
        for part in self.parts.values():
            part.training = self.training
            part.apply_mode()
        self._set_rest()

    def _set_rest(self) -> None:
        """Sets the modes of what is no part. That it is not the mode of this module, in a calibration, is for the
        rest only: the user's loop asks this module.
        """
        inside = {module for part in self.parts.values() for module in part.modules()}
        norms_live = self.training and self.schedule.norms_are_live
        for module in (self.face, *self.face.modules()):
            if module not in inside:
                is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
                module.training = norms_live if is_norm else self.training and self.is_qat

    def observe_in_any_mode(self) -> None:
        """Calibrates with all that runs through the parts, until they are finished by a conversion."""
        for part in self.parts.values():
            part.observe_in_any_mode()

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch it is; from then on ``train()`` counts for nothing."""
        for part in self.parts.values():
            part.set_epoch(epoch)
        self._set_rest()

    def freeze(self, norms: bool | None, observers: bool | None) -> None:
        """Freezes (True) or unfreezes (False) by hand; None leaves the one as it is."""
        for part in self.parts.values():
            part.freeze(norms, observers)
        self._set_rest()

    def finish(self) -> None:
        """Makes the ranges final for what was observed."""
        for part in self.parts.values():
            part.finish()

    # ---- the forward pass

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        parts = self.parts
        self._count(parts.values())
        for part in parts.values():
            part.follows = True  # its calls count for nothing more
        try:
            if self.training in self._modes_seen or torch.compiler.is_compiling():
                return self._run(*args, **kwargs)
            with Bypass(parts):
                result = self._run(*args, **kwargs)
            self._modes_seen.add(self.training)
            return result
        finally:
            for part in parts.values():
                part.follows = False

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self.training and not self.is_qat:
            with torch.no_grad():
                return self.face(*args, **kwargs)
        return self.face(*args, **kwargs)

    def _count(self, parts: Iterable[PreparedModule]) -> None:
        """Counts a step of each part, however often it is called in this one."""
        by_steps = self.schedule.steps_per_epoch is not None
        epoch = int(self.schedule.epoch) if by_steps else 0
        for part in parts:
            if part.is_counting:
                part.count()
        if by_steps and int(self.schedule.epoch) != epoch:
            self._set_rest()

    def run_float(self, *args: Any, **kwargs: Any) -> Any:
        """The float network, whatever the mode."""
        modes = {module: module.training for module in (self.face, *self.modules())}
        for module in modes:
            module.training = False
        set_phase(self, Phase.FLOAT)
        try:
            with Bypass(self.parts):
                return self.face(*args, **kwargs)
        finally:
            for module, mode in modes.items():
                module.training = mode
            self.apply_mode()


def _after_loading(module: PartedModule, _: Any) -> None:
    module._set_rest()  # the parts have seen to themselves


def distinct(network: Faced, paths: Iterable[str]) -> dict[str, Any]:
    """The submodules at `paths`, each at its first one."""
    found: dict[nn.Module, str] = {}
    for path in paths:
        found.setdefault(network.get_submodule(path), path)
    return {path: module for module, path in found.items()}


class ConvertedParts(Faced):
    """A user's model with integer networks at `paths`."""

    paths: tuple[str, ...]

    def __init__(self, face: nn.Module, paths: tuple[str, ...]) -> None:
        super().__init__(face)
        self.__dict__["paths"] = paths
        self.eval()

    @property
    def parts(self) -> dict[str, ConvertedModule]:
        """The integer networks by their paths; one that stands at several places is there once."""
        return distinct(self, self.paths)

    def train(self, mode: bool = True) -> ConvertedParts:
        """There is nothing to train: all modules stay in evaluation mode."""
        for module in (self.face, *self.face.modules()):
            module.training = False
        self.training = mode
        return self


@torch.no_grad()
def convert_parts(network: PartedModule) -> ConvertedParts:
    """The network with its parts as integer networks, and all else in float32. It stays as it is; nothing is shared.

    Raises CalibrationError when a part has no ranges yet.
    """
    if any(parameter.dtype is not torch.float32 for parameter in network.parameters()):
        network = copy.deepcopy(network).float()
    parts = network.parts
    converted = {path: convert(part) for path, part in parts.items()}
    memo: dict[int, Any] = {id(part): converted[path] for path, part in parts.items()}
    face = copy.deepcopy(network.face, memo)
    for path, part in parts.items():
        _keep_attributes(part, converted[path])
    return ConvertedParts(face, network.paths)


def _keep_attributes(part: PreparedModule, converted: ConvertedModule) -> None:
    """Lets the code around a part read on the integer network what it reads on the part: tensors and attributes."""
    for name, tensor in (*part._parameters.items(), *part._buffers.items()):
        if not hasattr(converted, name):
            converted.register_buffer(name, None if tensor is None else tensor.detach().clone())
    attributes: Any = shell(part.face or part)
    attributes.__dict__.update(vars(nn.Module()), training=False)
    converted.show_face_of(copy.deepcopy(attributes))


def explain_parts(network: PartedModule) -> str:
    """The table of each part; the rest is the user's own."""
    tables = [explain_part(path, part) for path, part in network.parts.items()]
    rest = f"All else of {type(network.face).__name__} stays the Python that it is, in float."
    return "\n\n".join([*tables, rest])
