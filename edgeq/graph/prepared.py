"""The trainable, calibratable network: what `wrapper.module` is until it is converted."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from edgeq.backends import BackendSpec
from edgeq.errors import CalibrationError
from edgeq.graph.program import Program
from edgeq.graph.quantization import Quantization
from edgeq.graph.ranges import observe, take_learned, take_ranges
from edgeq.modules.layer import QuantizedLayer
from edgeq.modules.live_scales import together
from edgeq.modules.norm_strategies import NORM_STRATEGIES
from edgeq.phase import Phase, set_phase
from edgeq.quantizers.scheme import Learner, set_learning
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.recovery.bank import Call, InputBank
from edgeq.recovery.calibration import Calibration
from edgeq.recovery.taken_in import TakenIn
from edgeq.schedule import Schedule
from edgeq.spec import Place, QConfig
from edgeq.stability import Stability, StabilityOptions

if TYPE_CHECKING:
    from edgeq.graph.passes.changes import Changes


logger = logging.getLogger(__name__)


class PreparedModule(Program, Learner):
    """A user's network with quantizers, as trainable as before. Its modes mean:

    train (training)     the user's training, simulated with quantization as the schedule says
    train (calibration)  an evaluation without gradients that observes ranges; no dropout
    eval                 the integer network, simulated exactly; nothing is observed, counted or updated
    """

    quantization: Quantization
    groups: dict[str, str]
    reasons: dict[str, str]
    places: dict[str, Place]
    changes: Changes
    qconfig: QConfig
    backend: BackendSpec
    is_qat: bool
    calibration: Calibration
    bank: InputBank | None
    writes: list[str]  # the inputs that the float network writes into, which this one never does

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        quantization: Quantization,
        qconfig: QConfig,
        backend: BackendSpec,
        calibration: Calibration,
        is_qat: bool,
        groups: dict[str, str],
        reasons: dict[str, str],
        places: dict[str, Place],
        changes: Changes,
    ) -> None:
        super().__init__(root, graph)
        self.quantization = quantization
        self.keep(
            groups=groups,  # names of nodes to the names of the quantizers that their values are quantized by
            reasons=reasons,  # names of nodes to why they stay float
            places=places,  # names of nodes that compute in integers, or move them, to what rules may say of them
            changes=changes,  # what rewrites have made of the graph before it was quantized
            qconfig=qconfig,
            backend=backend,
            is_qat=is_qat,
            calibration=calibration,
            bank=InputBank() if calibration.is_wanted else None,
        )
        self.observes_always = self.follows = False
        self._unmerged = False  # whether observations were made here of which other processes know nothing
        if is_qat:
            NORM_STRATEGIES[qconfig.batch_norm]().check(self.quantized_layers())
        self.register_load_state_dict_post_hook(_after_loading)
        self.apply_mode()

    # ---- parts

    @property
    def schedule(self) -> Schedule:
        """Counts the epochs."""
        return self.quantization.schedule

    @property
    def _title(self) -> str:
        """What messages call this network."""
        return f"the part {self.qconfig.origin!r}" if self.qconfig.origin else "the network"

    def quantized_layers(self) -> list[QuantizedLayer]:
        """The layers with quantized weights, each call of a shared one by itself."""
        return [module for module in self.own_modules() if isinstance(module, QuantizedLayer)]

    def standalone(self) -> list[PreparedModule]:
        """The submodules that are quantized by themselves: to this network's graph each is one call, in float."""
        return [module for module in self.modules() if isinstance(module, PreparedModule) and module is not self]

    def own_modules(self) -> Iterator[nn.Module]:
        """All modules but those of the submodules that are quantized by themselves."""
        others = {inner for module in self.standalone() for inner in module.modules()}
        return (module for module in self.modules() if module not in others)

    def quantizers(self) -> list[TensorQuantizer]:
        """The quantizers of activations, in the order of the graph."""
        return list(self.quantization.tensors.children())  # type: ignore[arg-type]

    def quantizer_of(self, node: str) -> TensorQuantizer | None:
        """The quantizer of the value of a node; None where it stays float."""
        if node not in self.groups:
            return None
        quantizer: TensorQuantizer = self.quantization.tensors[self.groups[node]]  # type: ignore[assignment]
        return quantizer if quantizer.observed else None

    @property
    def is_calibrated(self) -> bool:
        """Whether any range was observed, here or in the checkpoint that was loaded, or none needs to be."""
        observed = [tensor.observed for tensor in self.quantizers() if tensor.observer is not None]
        return any(observed) or not observed

    # ---- modes

    def train(self, mode: bool = True) -> PreparedModule:
        """Changes the mode. A change to training may begin an epoch, one away from it finishes the ranges. A module
        that is quantized by itself inside of another network follows that one.
        """
        return self if self.follows else self.change_mode(mode)

    def change_mode(self, mode: bool) -> PreparedModule:
        """Changes the mode, also of a module that follows another."""
        for module in self.standalone():
            module.change_mode(mode)
        over = mode and self.schedule.epoch_is_over()
        if (over or not mode) and not self.observes_always:
            self.finish()
        if over:
            self.schedule.next_epoch()
        self.training = mode
        self.apply_mode()
        if not (mode or self.observes_always or self.is_calibrated):
            logger.warning("eval() before any calibration or training step: %s runs in float.", self._title)
        return self

    def apply_mode(self) -> None:
        """Sets phases and the modes of the children from the mode, the epoch and what is frozen."""
        self._norms_live = norms_live = self.training and self.schedule.norms_are_live
        observing = self.training and self.schedule.observers_are_live
        for child in self.children():
            child.train(self.training and self.is_qat)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = norms_live
        for layer in self.quantized_layers():
            if not layer.site.strategy.follows_batches:
                for norm in layer.site.norms:
                    norm.training = False
            if self.training and self.is_qat:
                layer.site.strategy.start(layer)
        set_phase(self, self._phase(observing))
        learns = self.is_qat and self.is_counting and not self.schedule.ranges_are_held
        set_learning(self, learns)
        # Where no gradient is wanted layers compute with the buffers, without passing by the quantizers behind them.
        self._learns_exactly = learns and self._phase(observing) is Phase.QUANTIZE and bool(self.schemes())
        self._inner = self.standalone()
        for standalone in self._inner:
            standalone.training = self.training
            standalone.apply_mode()
        if self.face is not None:
            self.face.training = self.training and self.is_qat
        if not self.training:
            for tensor in self.quantizers():
                tensor.read_bounds()
        self._to_take_in = TakenIn(self) if self.training and self.is_qat else None
        if stability := self.quantization.stability:
            stability.begin(self.schedule if self.training else None, self.quantized_layers(), self.is_calibrated)
        self._lay_out()
        self._counted = int(self.schedule.step)

    def _lay_out(self) -> None:
        """Prepares what depends on where the tensors are and on who adapts."""
        layers = self.quantized_layers()
        self._beside_norms = [layer for layer in layers if layer.site.norm_paths]
        self._find_norms()
        for layer in layers:
            layer.forget()
        self._live_scales = together(layers)

    def _find_norms(self) -> None:
        """Lets layers know their batch norms, which may have been replaced since, by synchronized ones for example."""
        for layer in self._beside_norms:
            layer.site.find_norms(self.tree)

    def _apply(self, *args: Any, **kwargs: Any) -> PreparedModule:
        super()._apply(*args, **kwargs)
        self._lay_out()
        return self

    def watch(self, options: StabilityOptions, total_epochs: int) -> None:
        """Lets layers stand still, or be dampened, as the options say."""
        self.quantization.stability = Stability(options, self.quantized_layers(), total_epochs)
        self.apply_mode()

    def observe_in_any_mode(self) -> None:
        """Calibrates with all that runs through the network, until it is finished by a conversion."""
        for module in (*self.standalone(), self):
            module.observes_always = True
        self.apply_mode()

    def _phase(self, observing: bool) -> Phase:
        if observing or self.observes_always:
            return Phase.ADAPT if self.is_qat else Phase.OBSERVE
        return Phase.QUANTIZE if self.is_calibrated else Phase.FLOAT

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch it is; from then on ``train()`` counts for nothing."""
        for module in (*self.standalone(), self):
            module.finish()
            module.schedule.set_epoch(epoch)
        self.apply_mode()

    def freeze(self, norms: bool | None, observers: bool | None) -> None:
        """Freezes (True) or unfreezes (False) by hand; None leaves the one as it is."""
        for module in (*self.standalone(), self):
            module.finish()
            module.schedule.freeze(norms, observers)
        self.apply_mode()

    # ---- the forward pass

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.is_counting:
            return self.run_in_user_layout(*args, **kwargs)
        if not self.follows:
            self.count()
        result = self._run_in_training(*args, **kwargs)
        if self.bank is not None:
            self.bank.add(args, kwargs, result)
        return result

    def _run_in_training(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_qat:
            if self._to_take_in:
                self._to_take_in.apply()
                self._to_take_in = None
            if not torch.compiler.is_compiling():
                if self._norms_live:
                    self._find_norms()
                if self._learns_exactly and not torch.is_grad_enabled():
                    take_learned(self)
                for group in self._live_scales:
                    group.refresh()
            stability = self.quantization.stability
            if stability is None or not torch.is_grad_enabled():
                return self.run(*args, **kwargs)
            layers = self.quantized_layers()
            stability.pull(layers)
            result = self.run(*args, **kwargs)
            stability.see(layers)
            return result
        with torch.no_grad():
            return self.run_in_user_layout(*args, **kwargs)

    def run_float(self, *args: Any, **kwargs: Any) -> Any:
        """The float network, whatever the mode."""
        modes = {module: module.training for module in self.modules()}
        for module in modes:
            module.training = False
        set_phase(self, Phase.FLOAT)
        try:
            return self.run(*args, **kwargs)
        finally:
            for module, mode in modes.items():
                module.training = mode
            self.apply_mode()

    @property
    def is_counting(self) -> bool:
        """Whether a forward now is one of training or calibration."""
        return self.training or self.observes_always

    def count(self) -> None:
        """Counts a training forward, which may begin an epoch; here and in the submodules that follow this one."""
        for standalone in self._inner:
            standalone.count()
        self._unmerged = True
        if self.schedule.steps_per_epoch is None:
            self.schedule.count()
            return
        if self._counted >= self.schedule.steps_per_epoch:
            self.finish()
            self.schedule.next_epoch()
            self.apply_mode()
        self.schedule.count()
        self._counted += 1

    # ---- the end of an observation

    def finish(self) -> None:
        """Makes the ranges final for what was observed, and calibrates biases and codes if that is wanted. In a copy
        whose buffers are averages of a network's, all scales are taken anew from the ranges and weights.

        Raises CalibrationError naming the tensor when the data held NaN or infinity.
        """
        for standalone in self.standalone():
            standalone.finish()
        is_average = self.schedule.is_average
        if self.schedule.is_settled and not is_average:
            return
        if self.schedule.observers_are_live or self.observes_always or is_average:
            self._merge_processes()
            take_ranges(self)
        elif self.is_qat and not self.schedule.ranges_are_held:
            take_learned(self)
        if self.bank is not None and self.bank.steps > 0 and self.is_calibrated:
            self.calibration.run(self, self.bank.batches(), self.bank.steps)
            self.bank.clear()
        self._unmerged = False
        self.schedule.settle()  # last, so that data that cannot be used is refused again

    def observe(self, calls: Iterable[Call]) -> None:
        """Takes all ranges anew, from what `calls`, arguments and keyword arguments, give in evaluation."""
        observe(self, calls)

    def _merge_processes(self) -> None:
        if not (self._unmerged and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        for tensor in self.quantizers():
            if tensor.observer is not None:
                tensor.observer.merge_processes()

    def require_calibration(self) -> None:
        """Raises CalibrationError unless there are ranges to convert with."""
        self.finish()
        title = self._title
        if not self.is_calibrated:
            raise CalibrationError(
                f"{title[0].upper()}{title[1:]} has no ranges yet: run at least one batch in train() mode "
                "(for calibration without loss and optimizer), or load a checkpoint that has them, before you convert "
                f"or export.{' A part that nothing calls is not to be quantized.' if self.qconfig.origin else ''}"
            )


def _after_loading(module: PreparedModule, _: Any) -> None:
    module._unmerged = False
    module.apply_mode()
    if not module.training:
        module.finish()  # it may have been saved in training
