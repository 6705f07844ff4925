"""From a preset that a backend cannot run to the nearest one that it can."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq import strict
from edgeq.backends import Allowed, BackendSpec, load_backend
from edgeq.presets import load_preset
from edgeq.spec import BiasSpec, QConfig, TensorSpec


def derive(
    qconfig_type: str | Path | Mapping[str, Any] | QConfig | None,
    backend: str | Path | Mapping[str, Any] | BackendSpec = "qnnpack",
) -> tuple[QConfig, list[str]]:
    """The preset with every value that the backend does not allow replaced by the nearest that it does, and one
    line for each change, ``"weight.granularity: channel -> tensor"``. A preset without any is returned as it is.

    Raises SpecError as `load_preset` and `load_backend` do.
    """
    qconfig, spec = load_preset(qconfig_type), load_backend(backend)
    changes: list[str] = []
    legal = _legal(qconfig, spec, "", changes)
    return (legal, changes) if changes else (qconfig, [])


def _legal(qconfig: QConfig, backend: BackendSpec, where: str, changes: list[str]) -> QConfig:
    bias = qconfig.bias
    if bias.bits > backend.bias.bits and bias != BiasSpec():  # the default is cut to size without a word
        changes.append(f"{where}bias.bits: {bias.bits} -> {backend.bias.bits}")
        bias = backend.bias
    rules = tuple(
        dataclasses.replace(
            rule,
            weight=rule.weight and _allowed(rule.weight, backend.weight, f"{where}rules[{index}].weight", changes),
            activation=rule.activation
            and _allowed(rule.activation, backend.activation, f"{where}rules[{index}].activation", changes),
        )
        for index, rule in enumerate(qconfig.rules)
    )
    return dataclasses.replace(
        qconfig,
        name=f"{qconfig.name} for {backend.name}",
        weight=_allowed(qconfig.weight, backend.weight, f"{where}weight", changes),
        activation=_allowed(qconfig.activation, backend.activation, f"{where}activation", changes),
        bias=bias,
        rules=rules,
        edges=None if qconfig.edges is None else _legal(qconfig.edges, backend, f"{where}edges.", changes),
    )


def _allowed(spec: TensorSpec, rules: Allowed, where: str, changes: list[str]) -> TensorSpec:
    for rule in dataclasses.fields(rules):
        allowed, value = getattr(rules, rule.name), getattr(spec, rule.name)
        if allowed and value not in allowed:
            nearest = min(allowed, key=lambda bits: abs(bits - value)) if rule.name == "bits" else allowed[0]
            changes.append(f"{where}.{rule.name}: {strict.write(value)} -> {strict.write(nearest)}")
            spec = dataclasses.replace(spec, **{rule.name: nearest})
    return spec
