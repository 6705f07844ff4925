"""Bias absorption: what a channel is never without moves into the bias of the layers that read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeq.recovery.anew import calibrate_anew
from edgeq.recovery.measured import Measured
from edgeq.recovery.pairs import Pair, find_pairs
from edgeq.recovery.registry import RECOVERY_STEPS
from edgeq.recovery.sources import LayerSource, add_to_inputs

if TYPE_CHECKING:
    from edgeq.modules.layer import QuantizedLayer
    from edgeq.recovery.measured import Ends
    from edgeq.recovery.work import Work

DEVIATIONS = 3.0


@RECOVERY_STEPS.register("bias_absorption")
def bias_absorption(work: Work) -> str:
    """Takes ``c = beta - 3 gamma``, where it is positive, off each channel of a layer with a batch norm of weight gamma
    and bias beta, and adds ``W c`` to the bias of the layers that read it (Nagel et al., arXiv 1906.04721, section
    4.1.3): behind a ReLU nearly all of the channel lies above c, and its range becomes narrower by that.

    No more is taken off than the least that was measured, so that the float function stays. Layers that pad with
    zeros, in the place of which c would have to come, absorb nothing.
    """
    pairs = [pair for pair in find_pairs(work.network, work.seen[0]).found if _can_absorb(pair)]
    if not pairs:
        return "no pairs"
    measured = Measured(work.network, work.seen)
    count = 0
    for pair in pairs:
        assert isinstance(pair.source, LayerSource)
        amount = absorbable(pair.source.layer, measured.outputs[pair.source.layer])
        count += int((amount > 0).sum())
        move_offsets(pair, amount)
    if count:
        calibrate_anew(work)
    return f"{count} channels of {len(pairs)} layers"


def _can_absorb(pair: Pair) -> bool:
    source = pair.source
    with_norm = isinstance(source, LayerSource) and source.layer.site.norm is not None
    return with_norm and all(reader.takes_positive for reader in pair.readers)


def absorbable(layer: QuantizedLayer, ends: Ends) -> Tensor:
    """What can be taken off each channel of a layer whose outputs lie between `ends` before the activation: nothing
    where it is cut off above, or otherwise than at zero below.
    """
    site, (low, high) = layer.site, ends
    assert site.norm is not None
    mean = site.norm.bias * site.factor - layer.bias_shift
    amount = torch.minimum(mean - DEVIATIONS * (site.norm.weight * site.factor).abs(), low).clamp(min=0)
    is_cut = high >= (torch.inf if site.ceiling is None else site.ceiling)
    return torch.zeros_like(amount) if site.floor not in (None, 0.0) else torch.where(is_cut, 0.0, amount)


@torch.no_grad()
def move_offsets(pair: Pair, offsets: Tensor) -> None:
    """Takes a number off each channel of a pair's source, shape (channels,), and adds what it does to the biases of
    its readers.
    """
    for reader in pair.readers:
        add_to_inputs(reader.layer, reader.spread(offsets, 0.0))
    pair.source.subtract(offsets)
