"""Frozen dataclasses read from plain data (TOML, dict) and written back, with every key and type checked."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar

from edgeq.errors import SpecError, suggestion

T = TypeVar("T")

# Words that other toolkits use for what edgeq calls otherwise; an unknown key that is one of them gets the hint.
FOREIGN_WORDS = {
    "bitwidth": "bits",
    "power2_scale": 'scale = "power_of_two"',
    "pow2_scale": 'scale = "power_of_two"',
    "qscheme": "symmetric and granularity",
    "ch_axis": 'granularity = "channel"',
    "per_channel": 'granularity = "channel"',
    "dtype": "bits and sign",
    "range_shrink_percentile": 'observer = {name = "percentile", percentile = ...}',
    "observer_name": "observer",
    "observer_cls": "observer",
    "observer_type": "observer",
    "bit": "bits",
    "bit_width": "bits",
    "num_bits": "bits",
    "symmetry": "symmetric",
    "pot_scale": 'scale = "power_of_two"',
    "scale_type": "scale",
    "round_mode": "rounding; it is the backend's, not the preset's",
    "quant_min": "bits and sign",
    "quant_max": "bits and sign",
}
NONE = "none"  # how a file says that a value which it inherits does not hold: TOML has no null


def number(default: Any, low: float, high: float) -> Any:
    """A numeric field whose value must lie in low..high."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


@lru_cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def check_keys(data: Mapping[str, Any], known: typing.Iterable[str], where: str) -> None:
    """Raises SpecError for the first key of `data` that is not known."""
    known = list(known)
    for key in data:
        if key not in known:
            hint = f"edgeq calls it {FOREIGN_WORDS[key]}." if key in FOREIGN_WORDS else suggestion(key, known)
            raise SpecError(f"Unknown key {key!r} in {where}. {hint}")


def read(cls: type[T], data: Any, where: str) -> T:
    """An instance of the dataclass `cls` from a mapping. `where` names the place in messages.

    Raises SpecError for a value that is no mapping, an unknown key, a wrong type or a number out of its bounds.
    """
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise SpecError(f"{where} must be a table, got {data!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    check_keys(data, fields, where)
    values = {key: _checked(cls, fields[key], value, where) for key, value in data.items()}
    try:
        return cls(**values)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


def validate(instance: Any) -> None:
    """For ``__post_init__`` of a frozen dataclass: what code constructs is checked and converted like a file."""
    for field in dataclasses.fields(instance):
        value = _checked(type(instance), field, getattr(instance, field.name), type(instance).__name__)
        object.__setattr__(instance, field.name, value)


def _checked(cls: Any, field: dataclasses.Field[Any], value: Any, where: str) -> Any:
    """`value` as the field wants it. Raises SpecError for a wrong type or a number out of its bounds."""
    where = f"{where}.{field.name}"
    value, bounds = _value(_hints(cls)[field.name], value, where), field.metadata
    if value is not None and "low" in bounds and not bounds["low"] <= value <= bounds["high"]:
        raise SpecError(f"{where} must lie in {bounds['low']}..{bounds['high']}, got {value!r}.")
    return value


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` checked against the annotation `hint`, converted where that loses nothing."""
    if isinstance(hint, types.UnionType):
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
        if value is None or (value == NONE and hint is not str):
            return None
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise SpecError(f"{where} must be a list, got {value!r}.")
        item_hint = typing.get_args(hint)[0]
        return tuple(_value(item_hint, item, f"{where}[{index}]") for index, item in enumerate(value))
    if hasattr(hint, "from_data"):
        return hint.from_data(value, where)
    if dataclasses.is_dataclass(hint):
        return read(typing.cast(type, hint), value, where)
    if issubclass(hint, Enum):
        choices = [member.value for member in hint]
        if value in choices:
            return hint(value)
        raise SpecError(f"{where} is {value!r}. {suggestion(value, choices)}")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise SpecError(f"{where} must be {hint.__name__}, got {value!r}.")
    return value


def write(value: Any) -> Any:
    """Plain data that `read` turns into an equal instance; what is left at its default is left out."""
    if hasattr(value, "to_data"):
        return value.to_data()
    if dataclasses.is_dataclass(value):
        pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: write(item) for field, item in pairs if item != _default(field)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [write(item) for item in value]
    return value


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
