"""Activations that a device lacks, as ones that it has. Each changes the function of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from edgeq.graph.operators import Behaviour, behaviour_of, operator_of
from edgeq.graph.passes.draft import Draft
from edgeq.graph.passes.registry import Stage, rewrite

SPREAD = 4.0  # standard deviation of the data that the change is measured on, to reach where activations saturate


@rewrite("hard_activation_to_relu", Stage.REPLACE, "ReLU6, Hardtanh, clamp -> ReLU", keeps=False, default=False)
def hard_activation_to_relu(draft: Draft) -> None:
    """Whatever clips at zero below, and somewhere above, clips at zero only."""

    def clips_above_too(node: fx.Node) -> bool:
        module = draft.module(node)
        if not node.op.startswith("call") or behaviour_of(node, module) is not Behaviour.CLIP:
            return False
        bounds = operator_of(node, module).bounds
        floor, ceiling = (None, None) if bounds is None else bounds(node, module) or (None, None)
        return floor == 0.0 and ceiling is not None

    _replace(draft, clips_above_too, torch.relu)


@rewrite("silu_to_hardswish", Stage.REPLACE, "SiLU -> Hardswish", keeps=False, default=False)
def silu_to_hardswish(draft: Draft) -> None:
    """``x * sigmoid(x)`` as ``x * min(max(x + 3, 0), 6) / 6`` (Howard et al., arXiv 1905.02244)."""
    _replace(draft, lambda node: draft.kind(node) == "silu", functional.hardswish)


@rewrite("sigmoid_to_hardsigmoid", Stage.REPLACE, "sigmoid -> hardsigmoid", keeps=False, default=False)
def sigmoid_to_hardsigmoid(draft: Draft) -> None:
    """``min(max(x + 3, 0), 6) / 6`` (Howard et al., arXiv 1905.02244)."""
    _replace(draft, lambda node: draft.kind(node) == "sigmoid", functional.hardsigmoid)


def _replace(draft: Draft, matches: Callable[[fx.Node], bool], function: Callable[[Any], Any]) -> None:
    for node in draft.nodes():
        source = node.args[0] if node.args else node.kwargs.get("input")
        if not matches(node) or not isinstance(source, fx.Node) or not draft.is_quantized(node):
            continue
        x = draft.sample(64, 64) * SPREAD
        kind, before = draft.kind(node), draft.value(node, {source: x})
        draft.retarget(node, function, (source,))
        draft.record(node, f"{kind} -> {draft.kind(node)}", before, draft.value(node, {source: x}))
