"""What a device or a runtime can run, as data, and whether a preset fits it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgeq import strict
from edgeq.arithmetic import Rounding
from edgeq.errors import SpecError, suggestion
from edgeq.presets import data_folder, load_preset, preset_names, read_toml
from edgeq.spec import BiasSpec, Granularity, QConfig, Rule, ScaleKind, TensorSpec

DEPLOYABLE_BITS = (2, 3, 4, 5, 6, 7, 8)  # codes of converted networks and of files are bytes


@dataclass(frozen=True)
class Allowed:
    """The values that a spec's key may take; an empty list allows all. `bits` is never empty."""

    bits: tuple[int, ...] = DEPLOYABLE_BITS
    symmetric: tuple[bool, ...] = ()
    granularity: tuple[Granularity, ...] = ()
    scale: tuple[ScaleKind, ...] = ()

    def __post_init__(self) -> None:
        strict.validate(self)
        wide = [bits for bits in self.bits if bits not in DEPLOYABLE_BITS]
        if wide or not self.bits:
            choices = ", ".join(map(str, DEPLOYABLE_BITS))
            raise SpecError(f"bits is {list(self.bits)}. Networks are converted with: {choices}.")

    def broken(self, spec: TensorSpec, where: str) -> list[str]:
        """One line for each rule that `spec` breaks."""
        lines = []
        for rule in dataclasses.fields(self):
            allowed, value = getattr(self, rule.name), getattr(spec, rule.name)
            if allowed and value not in allowed:
                choices = ", ".join(str(strict.write(choice)) for choice in allowed)
                lines.append(f"{where}.{rule.name} is {strict.write(value)}; allowed: {choices}")
        return lines


@dataclass(frozen=True)
class OnnxSpec:
    """The files that the backend's importer reads. `clip_on_integers` puts an activation's bounds that the type
    does not imply behind QuantizeLinear, on codes, where the runtime keeps the layer in integers for it;
    otherwise they stand in front, in float.
    """

    opset: int = strict.number(17, 13, 21)
    opsets: tuple[int, ...] = ()
    ir_version: int = strict.number(8, 7, 13)
    clip_on_integers: bool = False

    def __post_init__(self) -> None:
        strict.validate(self)


@dataclass(frozen=True)
class BackendSpec:
    """One backend. `reduce_range` leaves the top bit of activations unused; `rounding` is that of its kernels."""

    name: str = "custom"
    summary: str = ""
    weight: Allowed = Allowed()
    activation: Allowed = Allowed()
    bias: BiasSpec = field(default_factory=BiasSpec)
    rounding: Rounding = Rounding.HALF_EVEN
    reduce_range: bool = False
    onnx: OnnxSpec = field(default_factory=OnnxSpec)

    def __post_init__(self) -> None:
        strict.validate(self)

    def broken_rules(self, qconfig: QConfig) -> list[str]:
        """One line for each rule that a preset breaks, its rules and edges included."""
        lines = self.weight.broken(qconfig.weight, "weight") + self.activation.broken(qconfig.activation, "activation")
        if qconfig.bias.bits > self.bias.bits and qconfig.bias != BiasSpec():
            lines.append(f"bias.bits is {qconfig.bias.bits}; at most {self.bias.bits}")
        for index, rule in enumerate(qconfig.rules):
            for key in ("weight", "activation"):
                spec = getattr(rule, key)
                lines += getattr(self, key).broken(spec, f"rules[{index}].{key}") if spec is not None else []
        if qconfig.edges is not None:
            lines += [f"edges.{line}" for line in self.broken_rules(qconfig.edges)]
        return lines


def backend_names() -> list[str]:
    """The backends that come with edgeq."""
    return sorted(path.stem for path in (data_folder() / "backends").glob("*.toml"))


def load_backend(source: str | Path | Mapping[str, Any] | BackendSpec) -> BackendSpec:
    """The backend that `source` names, describes or is. Raises SpecError for an unknown name or key."""
    if isinstance(source, BackendSpec):
        return source
    if isinstance(source, Mapping):
        return strict.read(BackendSpec, source, "backend")
    if isinstance(source, Path) or str(source).endswith(".toml"):
        path = Path(source)
        return strict.read(BackendSpec, {"name": path.stem, **read_toml(path, "backend")}, path.name)
    if source not in backend_names():
        raise SpecError(f"Unknown backend {source!r}. {suggestion(source, backend_names())}")
    return _named(source)


@lru_cache
def _named(name: str) -> BackendSpec:
    return load_backend(data_folder() / "backends" / f"{name}.toml")


def settle(qconfig: QConfig, backend: BackendSpec) -> QConfig:
    """The preset with the backend's own ways filled in: rounding, reduced range, bits of the bias.

    Raises SpecError listing every rule that the preset breaks, and the presets that would do.
    """
    broken = backend.broken_rules(qconfig)
    if broken:
        fitting = [name for name in preset_names() if not backend.broken_rules(load_preset(name))]
        raise SpecError(
            f"The backend {backend.name!r} cannot run the preset {qconfig.name!r}:\n  "
            + "\n  ".join(broken)
            + f"\nPresets that it can run: {', '.join(fitting) or 'none'}. edgeq.derive(preset, backend) makes the "
            "nearest one that it can run, and says what it changes."
        )

    def own(spec: TensorSpec | None) -> TensorSpec | None:
        if spec is None:
            return None
        return dataclasses.replace(spec, rounding=backend.rounding, reduce_range=backend.reduce_range)

    def own_rule(rule: Rule) -> Rule:
        return dataclasses.replace(rule, activation=own(rule.activation))

    return dataclasses.replace(
        qconfig,
        activation=own(qconfig.activation) or qconfig.activation,
        bias=BiasSpec(min(qconfig.bias.bits, backend.bias.bits)),
        rules=tuple(own_rule(rule) for rule in qconfig.rules),
        edges=None if qconfig.edges is None else settle(qconfig.edges, backend),
    )
