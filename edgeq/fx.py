"""The functions that users of PyTorch's FX quantization know: prepare_fx, prepare_qat_fx, convert_fx.

prepared = prepare_fx(model.eval(), QConfigMapping().set_global("WC8_AT8"))
calibrate(prepared)                    # runs data through it, in whatever mode
converted = convert_fx(prepared)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from edgeq.errors import SpecError
from edgeq.presets import load_preset
from edgeq.spec import QConfig, Rule
from edgeq.wrapper import Backend, IntegerModule, Preset, PTCFxModule, QATFxModule, QuantizedWrapper


class QConfigMapping:
    """Which preset holds for which layer, at four levels, each stronger than the one before: global, object type
    (a module class, a function or an operator's name), regular expression on the module's name, module name.

    A preset is anything that `edgeq.load_preset` takes; None leaves what it is set for in float.
    """

    def __init__(self) -> None:
        self.preset: Preset | None = "DEFAULT"
        self.rules: list[Rule] = []

    def set_global(self, preset: Preset | None) -> QConfigMapping:
        """For everything that nothing else is set for."""
        self.preset = preset
        return self

    def set_object_type(
        self, kind: type[nn.Module] | Callable[..., Any] | str, preset: Preset | None
    ) -> QConfigMapping:
        """For modules of a class, or calls of a function."""
        name = kind if isinstance(kind, str) else kind.__name__
        return self._add(preset, type=name)

    def set_module_name_regex(self, pattern: str, preset: Preset | None) -> QConfigMapping:
        """For modules whose whole name matches; of several patterns the first that was set wins."""
        return self._add(preset, pattern=pattern)

    def set_module_name(self, name: str, preset: Preset | None) -> QConfigMapping:
        """For the module of that name and all below it."""
        return self._add(preset, name=name)

    def _add(self, preset: Preset | None, **where: Any) -> QConfigMapping:
        if preset is None:
            self.rules.append(Rule(quantize=False, **where))
        else:
            qconfig = load_preset(preset)
            self.rules.append(Rule(weight=qconfig.weight, activation=qconfig.activation, **where))
        return self

    def qconfig(self) -> QConfig:
        """The preset that the whole mapping comes to. Raises SpecError when nothing is left to quantize."""
        if self.preset is None:
            if all(not rule.quantize for rule in self.rules):
                raise SpecError("The mapping leaves everything in float: set a preset globally or for some layers.")
            everything = Rule(pattern=".*", quantize=False)
            base = next(rule for rule in self.rules if rule.quantize)
            qconfig = QConfig(
                weight=base.weight or QConfig().weight, activation=base.activation or QConfig().activation
            )
            return dataclasses.replace(qconfig, rules=(*self.rules, everything))
        base_config = load_preset(self.preset)
        return dataclasses.replace(base_config, rules=(*self.rules, *base_config.rules))


def prepare_fx(
    model: nn.Module,
    qconfig_mapping: QConfigMapping | Preset | None = None,
    example_inputs: Any = None,
    backend: Backend = "qnnpack",
    bias_calibration_factor: float = 1.0,
    untraced: Iterable[str | type[nn.Module]] = (),
) -> PTCFxModule:
    """A copy of `model` that observes whatever runs through it, in either mode, until `convert_fx`."""
    prepared = PTCFxModule(
        model,
        _preset(qconfig_mapping),
        backend,
        example_inputs,
        bias_calibration_factor=bias_calibration_factor,
        untraced=untraced,
    )
    prepared.module.observe_in_any_mode()
    return prepared


def prepare_qat_fx(
    model: nn.Module,
    qconfig_mapping: QConfigMapping | Preset | None = None,
    example_inputs: Any = None,
    backend: Backend = "qnnpack",
    untraced: Iterable[str | type[nn.Module]] = (),
) -> QATFxModule:
    """The network to train; ranges and batch norms adapt until `freeze()` is called on it."""
    prepared = QATFxModule(model, _preset(qconfig_mapping), backend, example_inputs, total_epochs=1, untraced=untraced)
    prepared.unfreeze()
    return prepared


def convert_fx(prepared: QuantizedWrapper) -> IntegerModule:
    """The network of integers that a prepared one has become."""
    return prepared.convert()


def _preset(mapping: QConfigMapping | Preset | None) -> Preset | None:
    return mapping.qconfig() if isinstance(mapping, QConfigMapping) else mapping
