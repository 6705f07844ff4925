"""The functions that users of PyTorch's FX quantization know: prepare_fx, prepare_qat_fx, convert_fx.

prepared = prepare_fx(model.eval(), QConfigMapping().set_global("WC8_AT8"))
calibrate(prepared)                    # runs data through it, in whatever mode
converted = convert_fx(prepared)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import nn

from edgeq.errors import SpecError
from edgeq.presets import load_preset
from edgeq.spec import QConfig, Rule
from edgeq.wrapper import Backend, IntegerModule, Preset, PTCFxModule, QATFxModule, QuantizedWrapper

T = TypeVar("T", bound=nn.Module)


class QConfigMapping:
    """Which preset holds for which layer, at four levels, each stronger than the one before: global, object type
    (a module class, a function or an operator's name), regular expression on the module's name, module name.

    A preset is anything that `edgeq.load_preset` takes; None leaves what it is set for in float. Of a preset that
    is set for some layers, the specs of weight and activation count; what concerns a whole network, its bias,
    recovery steps, rules and edges, is the global preset's.
    """

    def __init__(self) -> None:
        self.preset: Preset | None = "DEFAULT"
        self.rules: list[Rule] = []

    def set_global(self, preset: Preset | None) -> QConfigMapping:
        """For everything that nothing else is set for."""
        self.preset = None if preset is None else load_preset(preset)
        return self

    def set_object_type(
        self, kind: type[nn.Module] | Callable[..., Any] | str, preset: Preset | None
    ) -> QConfigMapping:
        """For modules of a class, or calls of a function. The name of an operator in edgeq's table ("linear") stands
        for both.
        """
        name = kind if isinstance(kind, str) else getattr(kind, "__name__", None)
        if name is None:
            raise SpecError(f"An object type is a module class, a function or a name, got {kind!r}.")
        return self._add(preset, type=name)

    def set_module_name_regex(self, pattern: str, preset: Preset | None) -> QConfigMapping:
        """For modules whose whole name matches; of several patterns the first that was set wins."""
        return self._add(preset, pattern=pattern)

    def set_module_name(self, name: str, preset: Preset | None) -> QConfigMapping:
        """For the module of that name and all below it."""
        return self._add(preset, name=name)

    def _add(self, preset: Preset | None, **where: str) -> QConfigMapping:
        """Sets a rule; for what one was set for before, it takes its place."""
        if preset is None:
            rule = Rule(quantize=False, **where)  # type: ignore[arg-type]
        else:
            qconfig = load_preset(preset)
            if qconfig.edges is not None or qconfig.rules:
                raise SpecError(f"{qconfig.name!r} has edges or rules: it is a preset for networks, not for layers.")
            rule = Rule(weight=qconfig.weight, activation=qconfig.activation, **where)  # type: ignore[arg-type]
        key = rule.type, rule.pattern, rule.name
        keys = [(other.type, other.pattern, other.name) for other in self.rules]
        if key in keys:
            self.rules[keys.index(key)] = rule
        else:
            self.rules.append(rule)
        return self

    def qconfig(self) -> QConfig:
        """The preset that the whole mapping comes to. Raises SpecError when nothing is left to quantize."""
        if self.preset is None:
            if all(not rule.quantize for rule in self.rules):
                raise SpecError("The mapping leaves everything in float: set a preset globally or for some layers.")
            everything = Rule(type="*", quantize=False)  # the last of its level
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
    preserved_attributes: Iterable[str] = (),
) -> PTCFxModule:
    """A copy of `model` that observes whatever runs through it, in either mode, until `convert_fx`. Attributes of
    `model` that are named in `preserved_attributes` are there on it, and on what it is converted to, as well.
    """
    prepared = PTCFxModule(
        model,
        _preset(qconfig_mapping),
        backend,
        example_inputs,
        bias_calibration_factor=bias_calibration_factor,
        untraced=untraced,
    )
    prepared.module.observe_in_any_mode()
    return _preserve(prepared, model, preserved_attributes)


def prepare_qat_fx(
    model: nn.Module,
    qconfig_mapping: QConfigMapping | Preset | None = None,
    example_inputs: Any = None,
    backend: Backend = "qnnpack",
    untraced: Iterable[str | type[nn.Module]] = (),
    preserved_attributes: Iterable[str] = (),
) -> QATFxModule:
    """The network to train; ranges and batch norms adapt until `freeze()` is called on it. `preserved_attributes`
    as in `prepare_fx`.
    """
    prepared = QATFxModule(model, _preset(qconfig_mapping), backend, example_inputs, total_epochs=1, untraced=untraced)
    prepared.unfreeze()
    return _preserve(prepared, model, preserved_attributes)


def convert_fx(prepared: QuantizedWrapper) -> IntegerModule:
    """The network of integers that a prepared one has become."""
    if not isinstance(prepared, QuantizedWrapper):
        raise SpecError(f"convert_fx takes what prepare_fx or prepare_qat_fx returned, got {type(prepared).__name__}.")
    return _preserve(prepared.convert(), prepared, getattr(prepared, "preserved_attributes", ()))


def _preserve(wrapper: T, source: nn.Module, names: Iterable[str]) -> T:
    """`wrapper` with the attributes of `source` that are named, and their names."""
    preserved = tuple(names)
    for name in preserved:
        if not hasattr(source, name):
            raise SpecError(f"preserved_attributes names {name!r}, which {type(source).__name__} does not have.")
        if hasattr(wrapper, name):
            raise SpecError(f"preserved_attributes names {name!r}, which is edgeq's own on a quantized network.")
        setattr(wrapper, name, getattr(source, name))
    wrapper.preserved_attributes = preserved  # type: ignore[assignment]
    return wrapper


def _preset(mapping: QConfigMapping | Preset | None) -> Preset | None:
    return mapping.qconfig() if isinstance(mapping, QConfigMapping) else mapping
