"""What a user holds: a model that calibrates or trains quantized, converts, exports and proves itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from edgeq.backends import BackendSpec, load_backend, settle
from edgeq.checkpoint import LoadReport, load_weights
from edgeq.distillation import Distillation, Teacher
from edgeq.errors import CalibrationError, SpecError
from edgeq.exportable import ExportingModule, IntegerModule
from edgeq.graph.arguments import as_call, tried
from edgeq.graph.chosen import Submodules, chosen
from edgeq.graph.convert import ConvertedModule, convert
from edgeq.graph.explain import explain
from edgeq.graph.parts import ConvertedParts, PartedModule, convert_parts, explain_parts
from edgeq.graph.passes import Wanted
from edgeq.graph.prepare_parts import prepare_as_possible, prepare_parts, prepare_with_standalone
from edgeq.graph.prepared import PreparedModule
from edgeq.presets import Preset, load_preset
from edgeq.quantizers.scheme import Learner
from edgeq.recovery.recover import QUICK, RecoveryReport, Step, recover
from edgeq.recovery.recover_parts import recover_parts
from edgeq.recovery.samples import calls_of
from edgeq.schedule import Schedule
from edgeq.spec import QConfig
from edgeq.stability import StabilityOptions

logger = logging.getLogger(__name__)

Backend = str | Path | Mapping[str, Any] | BackendSpec


class QuantizedWrapper(ExportingModule, Learner):
    """What calibration and training have in common; the network itself is `module`."""

    module: PreparedModule | PartedModule
    is_qat: bool

    def __init__(
        self,
        model: nn.Module,
        qconfig_type: Preset | None,
        backend: Backend,
        example_inputs: Any,
        schedule: Schedule,
        bias_calibration_factor: float,
        untraced: Iterable[str | type[nn.Module]],
        rewrites: Wanted | None,
        submodules: Submodules | None,
        standalone: Submodules | None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise SpecError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
        if isinstance(model, ExportingModule | PreparedModule | ConvertedModule):
            raise SpecError(f"model is already quantized ({type(model).__name__}): wrap the float model.")
        factor = bias_calibration_factor
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor <= 1:
            raise SpecError(f"bias_calibration_factor must be a number in 0..1, got {factor!r}.")
        spec = load_backend(backend)
        qconfig = settle(load_preset(qconfig_type), spec)
        options: dict[str, Any] = {"is_qat": self.is_qat, "untraced": tuple(untraced), "rewrites": rewrites}
        everywhere = spec, schedule, float(factor), example_inputs
        if submodules is not None and standalone is not None:
            raise SpecError("submodules quantizes parts only, standalone parts beside all else: give one of them.")

        def settled(preset: Preset | None) -> QConfig:
            return qconfig if preset is None else settle(load_preset(preset), spec)

        if submodules is not None:
            parts = chosen(model, submodules, "submodules", settled)
            self.module = prepare_parts(model, parts, *everywhere, **options)
        elif standalone is not None:
            parts = chosen(model, standalone, "standalone", settled)
            self.module = prepare_with_standalone(model, qconfig, parts, *everywhere, **options)
        else:
            self.module = prepare_as_possible(model, qconfig, *everywhere, **options)
        self.training = model.training
        self.module.training = model.training
        self.module.apply_mode()
        if example_inputs is not None:
            self._try(example_inputs)

    def _try(self, example_inputs: Any) -> None:
        """Runs the prepared network once, in float, so that what does not fit shows now and not in training."""
        args, kwargs = as_call(example_inputs, self.module.argument_names)
        with tried(example_inputs), torch.no_grad():
            self.module.run_float(*args, **kwargs)

    # ---- the schedule by hand

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch it is, for trainers that change modes within one; ``train()`` then counts for nothing."""
        self.module.set_epoch(epoch)

    def freeze(self, freeze_bn: bool | None = True, freeze_observers: bool | None = True) -> None:
        """Stops the updates of batch-norm statistics and of ranges (True), resumes them (False), or leaves them
        as they are (None), whatever the schedule says.
        """
        self.module.freeze(freeze_bn, freeze_observers)

    def unfreeze(self) -> None:
        """Resumes the updates of batch-norm statistics and of ranges, whatever the schedule says."""
        self.freeze(False, False)

    def calibrate(self, loader: Iterable[Any], epochs: int | None = None) -> QuantizedWrapper:
        """Runs the batches of `loader` through the network in ``train()`` mode, without gradients, then ``eval()``. A
        batch is the model's input, or a tuple or list whose first item is; `epochs` defaults to the number in which
        ranges are observed.

        Raises CalibrationError for a loader without batches, or data with NaN or infinity.
        """
        if epochs is None:
            epochs = max(1, self.module.schedule.observer_epochs)
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise SpecError(f"epochs must be an integer of at least 1, got {epochs!r}.")
        for epoch in range(epochs):
            self.train()
            batches = 0
            with torch.no_grad():
                for batch in tqdm(loader, desc="calibrate", disable=None, leave=False):
                    self(batch[0] if isinstance(batch, tuple | list) else batch)
                    batches += 1
            if batches == 0:
                used = " It is an iterator, which runs only once: pass a list or a DataLoader." if epoch else ""
                raise CalibrationError(f"The loader gave no batch in epoch {epoch + 1} of {epochs}.{used}")
        self.eval()
        return self

    def recover(
        self,
        loader: Iterable[Any],
        steps: Sequence[Step] = QUICK,
        *,
        seed: int = 0,
        samples: int = 1024,
        checkpoint: str | Path | None = None,
    ) -> RecoveryReport:
        """Wins back accuracy that a calibration or training has lost, without labels: runs `steps`, names of
        `edgeq.recovery_steps()` or pairs of a name and its options, in order, each on at most so many `samples` of
        `loader`; by default those that take seconds. A step that does not bring the outputs nearer to the float
        network's, on samples held out, is undone.

        With `checkpoint`, a path, an interrupted call goes on where it was. Raises what `recover` of `edgeq.recovery`
        raises. A network that is quantized in parts is recovered part by part.
        """
        calls = calls_of(loader)
        try:
            if isinstance(self.module, PartedModule):
                return recover_parts(self.module, calls, steps, seed, samples, checkpoint)
            return recover(self.module, calls, steps, seed, samples, checkpoint)
        finally:
            self.training = self.module.training

    def load_weights(self, pretrained: str | Path | Mapping[str, Any], strict: bool = False) -> LoadReport:
        """Loads a checkpoint, of the float model or of this one, from a path or a dict, and reports which keys
        were loaded, are missing, are unexpected or differ in shape. With `strict`, the last three raise
        SpecError and nothing is loaded.
        """
        return load_weights(self.module, pretrained, strict)

    # ---- what comes out

    def explain(self) -> str:
        """A table of every tensor: how it is quantized, with whom it shares its range, or why it stays float."""
        return explain_parts(self.module) if isinstance(self.module, PartedModule) else explain(self.module)

    def integer_network(self) -> ConvertedModule | ConvertedParts:
        return convert_parts(self.module) if isinstance(self.module, PartedModule) else convert(self.module)

    def convert(self) -> IntegerModule:
        """A new module that computes with integers; this one stays as it is.

        Raises CalibrationError when there are no ranges yet.
        """
        return IntegerModule(self.integer_network())


class PTCFxModule(QuantizedWrapper):
    """Post-training calibration: run batches through it in ``train()`` mode, as in a training loop without loss,
    backward and optimizer, then ``eval()``.

    Args:
        model: the float network, which stays usable. Its parameters are shared, not copied.
        qconfig_type: a preset by name, by path to a TOML file, as a dict, as a QConfig, or two as "A+B".
        backend: what the network is for, by name, path or dict; its rules are checked and its rounding simulated.
        example_inputs: optional; the network is then tried on them at once.
        bias_calibration_factor: 0..1, the part of each layer's mean error that a batch takes away from it. 1
            removes the mean error that is measured; 0 leaves the biases alone.
        num_batch_norm_update_epochs: in how many epochs batch norms update their statistics.
        num_observer_update_epochs: in how many epochs ranges are observed.
        steps_per_epoch: counts an epoch by steps instead of by ``train()``.
        untraced: submodules, by name or class, that are kept whole and in float.
        rewrites: names of rewrites of the graph (`edgeq.rewrite_names()`) to False, for one that runs by default, and
            to True or a dict of its options for one that runs only on request.
        submodules: names of the submodules to quantize, each by itself, while all else of the model stays the Python
            that it is; or a dict from names to presets (None for `qconfig_type`). A class stands for all of its
            submodules, an `nn.ModuleList` for its items. Rules name layers as the whole model does; of "A+B", B is
            for the input, first convolution and last linear layer of each part.
        standalone: as `submodules`, for ones that are quantized by themselves, with real numbers going in and out,
            while all else is quantized as one.

    Raises:
        SpecError: an unknown name or key, a preset that the backend cannot run, or nothing to quantize.
        TraceError: a model that cannot be captured; it names file, line and submodule.
    """

    is_qat = False

    def __init__(
        self,
        model: nn.Module,
        qconfig_type: Preset | None = None,
        backend: Backend = "qnnpack",
        example_inputs: Any = None,
        bias_calibration_factor: float = 1.0,
        num_batch_norm_update_epochs: int = 0,
        num_observer_update_epochs: int = 1,
        steps_per_epoch: int | None = None,
        untraced: Iterable[str | type[nn.Module]] = (),
        rewrites: Wanted | None = None,
        submodules: Submodules | None = None,
        standalone: Submodules | None = None,
    ) -> None:
        schedule = Schedule(num_batch_norm_update_epochs, num_observer_update_epochs, steps_per_epoch)
        options = untraced, rewrites, submodules, standalone
        super().__init__(model, qconfig_type, backend, example_inputs, schedule, bias_calibration_factor, *options)


class QATFxModule(QuantizedWrapper):
    """Quantization-aware training: the user's training loop, around a network that is simulated with
    quantization from the first batch on.

    Args:
        model, qconfig_type, backend, example_inputs, steps_per_epoch, untraced, rewrites, submodules, standalone: as in
            `PTCFxModule`.
        total_epochs: how many epochs the training has.
        num_batch_norm_update_epochs: defaults to total_epochs // 2 - 1, at least 1.
        num_observer_update_epochs: defaults to total_epochs // 2 + 1, at least 1.
        bias_calibration_factor: as in `PTCFxModule`, at the end of each epoch. Its inputs are not saved: call
            ``eval()``, which ends the epoch, before a checkpoint is.
        distillation: how much the network learns from the float model beside what the loop teaches it: the weight of
            that loss, or a dict of its settings (`Distillation`). The loop stays as it is; only one that multiplies
            its loss, with a `torch.amp.GradScaler`, says so to `use_grad_scaler`.
        freeze_layers: which layers stand still, weights, batch norm and ranges, at the end of the training:
            "depthwise" ones, or the "unstable" ones, whose weights keep jumping from code to code. Under
            DistributedDataParallel, say `find_unused_parameters=True`.
        freeze_epoch: from which epoch on; defaults to total_epochs // 2.
        dampening: how strongly weights are pulled towards the codes that they round to: a factor of the squared error
            of rounding, which grows to this from zero during the training (Nagel et al., arXiv 2203.11086).

    Raises:
        SpecError, TraceError: as in `PTCFxModule`.
    """

    is_qat = True

    def __init__(
        self,
        model: nn.Module,
        qconfig_type: Preset | None = None,
        backend: Backend = "qnnpack",
        example_inputs: Any = None,
        total_epochs: int | None = None,
        num_batch_norm_update_epochs: int | None = None,
        num_observer_update_epochs: int | None = None,
        bias_calibration_factor: float = 0.0,
        steps_per_epoch: int | None = None,
        untraced: Iterable[str | type[nn.Module]] = (),
        rewrites: Wanted | None = None,
        submodules: Submodules | None = None,
        standalone: Submodules | None = None,
        distillation: Distillation | float | Mapping[str, Any] | None = None,
        freeze_layers: str | None = None,
        freeze_epoch: int | None = None,
        dampening: float = 0.0,
    ) -> None:
        if total_epochs is None:
            raise SpecError(
                "total_epochs is missing: say how many epochs the training has, QATFxModule(model, total_epochs=25)."
            )
        schedule = Schedule.for_training(
            total_epochs, num_batch_norm_update_epochs, num_observer_update_epochs, steps_per_epoch
        )
        options = untraced, rewrites, submodules, standalone
        stability = StabilityOptions.for_training(total_epochs, freeze_layers, freeze_epoch, dampening)
        settings = None if distillation is None else Distillation.from_data(distillation)
        super().__init__(model, qconfig_type, backend, example_inputs, schedule, bias_calibration_factor, *options)
        self.teacher = None if settings is None else Teacher(model, settings)
        if stability is not None:
            for network in self._networks():
                network.watch(stability, total_epochs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        if self.teacher is None or not (self.training and torch.is_grad_enabled()):
            return outputs
        return self.teacher.teach(outputs, args, kwargs)

    def use_grad_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """Says that the loop multiplies its loss by the scale of `scaler`, so that what distillation and dampening add
        to the gradients is multiplied by it too. A copy of the network has to be told again.
        """
        for network in self._networks():
            if network.quantization.stability is not None:
                network.quantization.stability.scaler = scaler
        if self.teacher is not None:
            self.teacher.scaler = scaler

    def _networks(self) -> list[PreparedModule]:
        """What is quantized as one each."""
        return [module for module in self.module.modules() if isinstance(module, PreparedModule)]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> QATFxModule:
        super()._apply(fn, recurse)
        if self.teacher is not None:
            self.teacher.to_where(fn)
        return self
