"""Which preset holds for which layer, said level by level as users of PyTorch's FX quantization know it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from edgeq import strict
from edgeq.errors import SpecError
from edgeq.presets import DEFAULT_NAME, Preset, load_preset, to_data
from edgeq.spec import QConfig, Rule

Kind = type[nn.Module] | Callable[..., Any] | str

SPECS = ("weight", "activation", "weight_only")  # what of a preset counts for single layers
GLOBAL = ""  # the key of the global preset in a dict
LEVELS: dict[str, tuple[str, ...]] = {
    "object_type": ("type",),
    "module_name_regex": ("pattern",),
    "module_name": ("name",),
    "module_name_object_type": ("name", "type"),
    "module_name_object_type_order": ("name", "type", "index"),
}  # the keys of the others, and what of a rule an entry begins with


class QConfigMapping:
    """Which preset holds for which layer, at five levels, each stronger than the one before: global, object type
    (a module class, a function or an operator's name), regular expression on the module's name, module name, and
    the n-th call of an object type in a module.

    A preset is anything that `edgeq.load_preset` takes; None leaves what it is set for in float. Of a preset that
    is set for some layers, the specs of weight and activation count, and `weight_only`; what concerns a whole network,
    its bias, recovery steps, rules and edges, is the global preset's.
    """

    def __init__(self) -> None:
        self.preset: Preset | None = DEFAULT_NAME
        self.rules: list[Rule] = []

    def set_global(self, preset: Preset | None) -> QConfigMapping:
        """For everything that nothing else is set for."""
        self.preset = None if preset is None else load_preset(preset)
        return self

    def set_object_type(self, kind: Kind, preset: Preset | None, within: str | None = None) -> QConfigMapping:
        """For modules of a class, with all that they are made of, or calls of a function or of a tensor's method;
        with `within`, only for those at or below the module of that name. The name of an operator in edgeq's table
        ("linear") stands for module, function and method.
        """
        return self._add(preset, type=_name(kind), name=within)

    def set_module_name_regex(self, pattern: str, preset: Preset | None) -> QConfigMapping:
        """For modules whose whole name matches; of several patterns the first that was set wins."""
        return self._add(preset, pattern=pattern)

    def set_module_name(self, name: str, preset: Preset | None) -> QConfigMapping:
        """For the module of that name and all below it."""
        return self._add(preset, name=name)

    def set_module_name_object_type_order(
        self, name: str, kind: Kind, index: int, preset: Preset | None
    ) -> QConfigMapping:
        """For one call of a module of a class, or of a function, among those that the forward of the module `name`
        ("" is the model itself) makes: the one after `index` others.
        """
        return self._add(preset, name=name, type=_name(kind), index=index)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QConfigMapping:
        """The mapping that a dict describes: `""` gives the global preset, "object_type", "module_name_regex",
        "module_name", "module_name_object_type" and "module_name_object_type_order" each give a list of tuples,
        the arguments of the setter, the preset last.
        """
        strict.check_keys(data, [GLOBAL, *LEVELS], "the mapping")
        mapping = cls()
        if GLOBAL in data:
            mapping.set_global(data[GLOBAL])
        for level, keys in LEVELS.items():
            for entry in data.get(level, ()):
                if not isinstance(entry, list | tuple) or len(entry) != len(keys) + 1:
                    expected = ", ".join((*keys, "preset"))
                    raise SpecError(f"An entry of {level!r} is a tuple ({expected}), got {entry!r}.")
                where = dict(zip(keys, entry, strict=False))
                if "type" in where:
                    where["type"] = _name(where["type"])
                mapping._add(entry[-1], **where)
        return mapping

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` makes an equal mapping of."""
        data: dict[str, Any] = {GLOBAL: None if self.preset is None else to_data(load_preset(self.preset))}
        for level, keys in LEVELS.items():
            rules = [rule for rule in self.rules if _given(rule) == set(keys)]
            if rules:
                data[level] = [(*(getattr(rule, key) for key in keys), _preset_data(rule)) for rule in rules]
        return data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QConfigMapping) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def _add(self, preset: Preset | None, **where: Any) -> QConfigMapping:
        """Sets a rule; for what one was set for before, it takes its place."""
        if preset is None:
            rule = Rule(quantize=False, **where)
        else:
            qconfig = load_preset(preset)
            if qconfig.edges is not None or qconfig.rules:
                raise SpecError(f"{qconfig.name!r} has edges or rules: it is a preset for networks, not for layers.")
            specs = {key: getattr(qconfig, key) for key in SPECS}
            rule = Rule(**specs, **where)
        subjects = [_subject(other) for other in self.rules]
        if _subject(rule) in subjects:
            self.rules[subjects.index(_subject(rule))] = rule
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


def _name(kind: Kind) -> str:
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", None)
    if name is None:
        raise SpecError(f"An object type is a module class, a function or a name, got {kind!r}.")
    return str(name)


def _subject(rule: Rule) -> tuple[Any, ...]:
    return rule.type, rule.pattern, rule.name, rule.index


def _given(rule: Rule) -> set[str]:
    return {key for key in ("type", "pattern", "name", "index") if getattr(rule, key) is not None}


def _preset_data(rule: Rule) -> dict[str, Any] | None:
    if not rule.quantize:
        return None
    specs = {key: value for key in SPECS if (value := getattr(rule, key)) is not None}
    return to_data(QConfig(**specs))
