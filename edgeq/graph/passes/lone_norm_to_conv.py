"""A batch norm that no layer takes in, as a convolution that integers can run."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from edgeq.graph.operators import Behaviour, behaviour_of
from edgeq.graph.passes.draft import Draft
from edgeq.graph.passes.layers import norm_of
from edgeq.graph.passes.registry import Stage, rewrite
from edgeq.modules.folding import Folds
from edgeq.modules.operation import Operation
from edgeq.modules.torch_class import torch_class
from edgeq.spec import Granularity, ScaleKind

CONVOLUTIONS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


@rewrite("lone_norm_to_conv", Stage.FINISH, "a batch norm by itself -> a depthwise convolution of one position")
def lone_norm_to_conv(draft: Draft, *, inexact: bool = False) -> None:
    """A convolution with a constant weight of ones goes in front of the norm and takes it in as any convolution
    does: the norm stays the user's module, with its parameters and statistics. The weight is no parameter, and in
    no state dict. Where a norm has matrices as input, they are maps of one position in between. The graph or the
    example inputs must tell how many dimensions the input of a BatchNorm1d has.

    What the norm multiplies a channel with is its only weight, and exact with a free scale for each channel. Where
    weights share a scale, or have powers of two or a limited range, it would be rounded: a trained network of norms
    before activations lost 1.5 to 3 dB by that, so such norms stay in float unless they may be `inexact`.
    """
    for node in list(draft.chains()):
        norm = norm_of(draft, node)
        if norm is None or _follows_a_float_layer(draft, node) or not (inexact or _is_exact(draft, node)):
            continue
        rank = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}.get(torch_class(norm)) or draft.ranks[node.args[0]]  # type: ignore[index]
        if rank in (2, *CONVOLUTIONS):
            _stand_behind_ones(draft, node, norm, rank)


def _follows_a_float_layer(draft: Draft, node: fx.Node) -> bool:
    """Whether a layer stands in front that would take the norm in, if a rule did not leave it in float."""
    source: Any = node.args[0]
    is_layer = draft.kind(source) in ("conv", "conv_transpose", "linear")
    return is_layer and draft.reader(source) is node and not draft.is_quantized(source)


def _is_exact(draft: Draft, node: fx.Node) -> bool:
    """Whether the weight's spec represents the only weight of each channel exactly."""
    rule = draft.rule(node)
    spec = draft.qconfig.weight if rule is None or rule.weight is None else rule.weight
    is_free = spec.granularity is Granularity.CHANNEL and spec.scale is ScaleKind.FREE
    return is_free and spec.range_max is None and spec.fixed_range is None


def _stand_behind_ones(draft: Draft, node: fx.Node, norm: Any, rank: int) -> None:
    source: Any = node.args[0]
    x = draft.sample(4, norm.num_features, *(1,) * (rank - 2))
    before = draft.value(node, {source: x})
    path = draft.install(f"{node.name}_conv", _ones(norm, max(rank, 3)))
    if rank == 2:
        source = draft.insert(node, source, torch.unsqueeze, (source, -1), f"{node.name}_unsqueezed")
    conv = draft.insert(node, source, path, (source,), f"{node.name}_conv")
    node.replace_input_with(node.args[0], conv)  # type: ignore[arg-type]
    if rank == 2:
        tail = _tail(draft, node)
        readers = list(tail.users)
        squeezed = draft.insert(node, tail, torch.squeeze, (tail, -1), f"{node.name}_squeezed")
        for reader in readers:
            reader.replace_input_with(tail, squeezed)
    ones: Any = draft.module(conv)
    folded: Any = Folds(norm=norm).fold(Operation.of_module(ones), ones.weight, None)
    weight, bias = (parameter.reshape(-1, *x.shape[2:]) for parameter in folded)
    after = x * weight + bias  # which is what the convolution does
    draft.record(node, "a batch norm by itself -> a depthwise convolution", before, after)


def _tail(draft: Draft, node: fx.Node) -> fx.Node:
    """The activation that the norm is fused with, or the norm."""
    reader = draft.reader(node)
    clips = reader is not None and behaviour_of(reader, draft.module(reader)) is Behaviour.CLIP
    return reader if reader is not None and clips else node


def _ones(norm: Any, rank: int) -> nn.Module:
    """A depthwise convolution whose weight is ones, of the norm's type and on its device, and no parameter."""
    channels = norm.num_features
    with torch.device("meta"):
        conv = CONVOLUTIONS[rank](channels, channels, 1, groups=channels, bias=False)
    shape = conv.weight.shape
    del conv.weight
    conv.register_buffer("weight", torch.ones(shape).to(norm.running_mean), persistent=False)
    return conv
