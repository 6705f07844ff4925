"""A preset by name, by path, as a dict, as a QConfig, or two of them as "A+B": always one QConfig."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgeq import strict
from edgeq.errors import SpecError, suggestion
from edgeq.spec import QConfig, Rule
from edgeq.toml import dumps

DEFAULT_NAME = "DEFAULT"
Preset = str | Path | Mapping[str, Any] | QConfig


def data_folder() -> Path:
    """Where the preset and backend files are: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "qconfigs"
    return installed if installed.is_dir() else package.parent / "qconfigs"


def preset_names() -> list[str]:
    """The presets that come with edgeq."""
    return sorted(path.stem for path in data_folder().glob("*.toml"))


def load_preset(source: Preset | None) -> QConfig:
    """The QConfig that `source` names, describes or is; None is the default preset.

    Raises SpecError for an unknown name or key, a file that cannot be read, or a value that makes no sense.
    """
    return _load(source, ())


def _load(source: Any, above: tuple[Path, ...]) -> QConfig:
    """`load_preset`, for a preset that the files `above` refer to."""
    if source is None:
        source = DEFAULT_NAME
    if isinstance(source, QConfig):
        return source
    if isinstance(source, Mapping):
        return _resolve(dict(source), "qconfig_type", above)
    if isinstance(source, Path):
        return _from_file(source, above)
    if not isinstance(source, str):
        raise SpecError(f"qconfig_type must be a name, a path, a dict or a QConfig, got {source!r}.")
    is_path = source.endswith(".toml") and ("+" not in source or Path(source).exists())
    parts = [source] if is_path else [part.strip() for part in source.split("+")]
    if len(parts) > 2:
        raise SpecError(f"qconfig_type {source!r} joins {len(parts)} presets; 'A+B' joins two.")
    qconfigs = [_from_file(Path(part), above) if part.endswith(".toml") else _named(part) for part in parts]
    return qconfigs[0].with_edges(qconfigs[1]) if len(parts) == 2 else qconfigs[0]


def save_preset(qconfig: QConfig, path: str | Path) -> None:
    """Writes `qconfig` as a file that `load_preset` reads back as an equal QConfig."""
    Path(path).write_text(dumps(to_data(qconfig)), encoding="utf-8")


@lru_cache
def _named(name: str) -> QConfig:
    if name not in preset_names():
        raise SpecError(f"Unknown preset {name!r}. {suggestion(name, preset_names())}")
    return _from_file(data_folder() / f"{name}.toml", ())


def _from_file(path: Path, above: tuple[Path, ...]) -> QConfig:
    if path.resolve() in above:
        raise SpecError(f"The preset file {str(path)!r} inherits, by way of others or directly, from itself.")
    data = read_toml(path, "preset")
    data.setdefault("name", path.stem)
    for key in ("inherits", "edges"):  # a file names others by where it is itself
        if str(data.get(key)).endswith(".toml"):
            data[key] = path.parent / data[key]
    return _resolve(data, path.name, (*above, path.resolve()))


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The table in a TOML file. Raises SpecError naming the file when it is missing or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"The {what} file {str(path)!r} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"The {what} file {str(path)!r} is no TOML: {error}.") from error


def _resolve(data: dict[str, Any], where: str, above: tuple[Path, ...]) -> QConfig:
    """Merges `data` over the preset that it inherits from, and a rule's specs over the preset's own."""
    data = {"name": "custom", "summary": "", **data}
    inherits, edges, rules = (data.pop(key, None) for key in ("inherits", "edges", "rules"))
    base = _other(inherits, f"{where}.inherits", above) if inherits is not None else QConfig()
    merged = merge({key: value for key, value in _full(base).items() if key not in ("rules", "edges")}, data)
    qconfig = strict.read(QConfig, merged, where)
    own_rules = base.rules if rules is None else _rules(rules, qconfig, where)
    own_edges = base.edges
    if edges is not None:
        own_edges = None if edges == strict.NONE else _other(edges, f"{where}.edges", above)
    return dataclasses.replace(qconfig, rules=own_rules, edges=own_edges)


def _other(source: Any, where: str, above: tuple[Path, ...]) -> QConfig:
    """The preset that another one refers to."""
    try:
        return _load(source, above)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


def _rules(rules: Any, qconfig: QConfig, where: str) -> tuple[Rule, ...]:
    if not isinstance(rules, list | tuple):
        raise SpecError(f"{where}.rules must be a list of tables, got {rules!r}.")
    read = []
    for index, rule in enumerate(rules):
        place = f"{where}.rules[{index}]"
        if isinstance(rule, Mapping):
            specs = {
                key: merge(_full(getattr(qconfig, key)), rule[key])
                for key in ("weight", "activation")
                if isinstance(rule.get(key), Mapping)
            }
            rule = {**rule, **specs}
        read.append(strict.read(Rule, rule, place))
    return tuple(read)


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change`; tables merge key by key, unless they name an algorithm: that has only
    the options that stand beside its name.
    """
    merged = dict(base)
    for key, value in change.items():
        before = merged.get(key)
        if isinstance(before, str) and isinstance(value, Mapping):
            before = {"name": before}
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = value if "name" in value else merge(before, value)
        merged[key] = value
    return merged


def _full(value: Any) -> dict[str, Any]:
    """Every field of a spec as plain data; None, which TOML cannot say, is left out."""
    pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    return {
        key: _full(item) if dataclasses.is_dataclass(item) and not hasattr(item, "to_data") else strict.write(item)
        for key, item in pairs
        if item is not None
    }


def to_data(qconfig: QConfig) -> dict[str, Any]:
    """Plain data that `load_preset` makes an equal QConfig of: what differs from a plain one, and its rules in full."""
    data, plain = _full(qconfig), _full(QConfig())
    changed: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and key != "edges":
            value = {name: item for name, item in value.items() if item != plain[key].get(name)}
        if value not in ({}, [], plain.get(key)):
            changed[key] = value
    changed["name"] = qconfig.name
    if qconfig.rules:
        changed["rules"] = [_rule_data(rule) for rule in qconfig.rules]
    if qconfig.edges is not None:
        changed["edges"] = to_data(qconfig.edges)
    return changed


def _rule_data(rule: Rule) -> dict[str, Any]:
    """A rule with its specs in full, since they are read as changes of the preset's own."""
    specs = {key: spec for key in ("weight", "activation") if (spec := getattr(rule, key)) is not None}
    absent = dict.fromkeys(("range_max", "fixed_range"), strict.NONE)
    return {**strict.write(rule), **{key: {**absent, **_full(spec)} for key, spec in specs.items()}}
