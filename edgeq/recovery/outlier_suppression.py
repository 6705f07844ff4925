"""Outlier suppression, for transformers above all: a few great features do not set the step for all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgeq.recovery.anew import calibrate_anew
from edgeq.recovery.bias_absorption import move_offsets
from edgeq.recovery.equalization import limits, read_range, rescale, weight_table
from edgeq.recovery.feature_clipping import clip_features
from edgeq.recovery.measured import Ends, Measured
from edgeq.recovery.pairs import Pair, find_pairs
from edgeq.recovery.registry import RECOVERY_STEPS
from edgeq.recovery.sources import LayerSource

if TYPE_CHECKING:
    from torch import Tensor

    from edgeq.recovery.work import Work


@RECOVERY_STEPS.register("outlier_suppression", {"alpha": (0.0, 1.0), "sigmas": (0.0, 1e3)})
def outlier_suppression(work: Work, *, shift: bool = True, alpha: float = 0.5, sigmas: float = 0.0) -> str:
    """Three parts, each of which can be left out. The first two work on each norm, and each layer, that only layers
    read, and leave the float function as it is.

    `shift` takes the middle of each channel's range off the norm's bias, and adds what it does to the biases of the
    layers that read it (Wei et al., Outlier Suppression+, arXiv 2304.09145, section 4.1).
    `alpha`, 0..1, 0 to leave out, divides each channel by ``s = max|X|**alpha / max|W|**(1 - alpha)`` and multiplies
    what the layers that read it do with it by the same (Xiao et al., SmoothQuant, arXiv 2211.10438, equation 4).
    `sigmas`, 0 to leave out, ends the ranges behind GELU and its like, in front of linear layers, where no feature's
    mean plus or minus so many standard deviations reaches.
    """
    notes = []
    pairs = find_pairs(work.network, work.seen[0]).found if shift or alpha > 0 else []
    if shift:
        shifted = [pair for pair in pairs if _can_shift(pair)]
        measured = Measured(work.network, work.seen)
        for pair in shifted:
            low, high = read_ends(pair, measured)
            move_offsets(pair, (low + high) / 2)
        notes.append(f"{len(shifted)} tensors shifted")
    if alpha > 0:
        measured = Measured(work.network, work.seen)
        for pair in pairs:
            rescale(pair, migration(pair, measured, alpha))
        notes.append(f"{len(pairs)} rescaled")
    if pairs:
        calibrate_anew(work)
    if sigmas > 0:
        notes.append(f"{clip_features(work, sigmas)} clipped")
    return ", ".join(notes)


def migration(pair: Pair, measured: Measured, alpha: float) -> Tensor:
    """The numbers to divide a source's channels by, shape (channels,): as above, with a geometric mean of one, but
    within the `limits` of a layer's activation.
    """
    low, high = read_ends(pair, measured)
    x = torch.maximum(low.abs(), high.abs())
    w = read_range(pair, [weight_table(reader.layer) for reader in pair.readers])
    lives = (x > 0) & (w > 0)
    logarithm = torch.where(lives, alpha * x.log() - (1 - alpha) * w.log(), 0.0)
    scale = torch.where(lives, (logarithm - logarithm.sum() / lives.sum().clamp(min=1)).exp(), 1.0)
    if isinstance(pair.source, LayerSource):
        return scale.clamp(*limits(pair.source.layer, measured.outputs[pair.source.layer], reach=0.0))
    return scale


def read_ends(pair: Pair, measured: Measured) -> Ends:
    """Between what a source's channels lie where they are read; zeros for one that is not."""
    ends = [(reader, *measured.inputs[reader.layer]) for reader in pair.readers]
    low = -torch.stack([reader.gathered(-low, pair.source.channels, -torch.inf) for reader, low, _ in ends]).amax(0)
    high = torch.stack([reader.gathered(high, pair.source.channels, -torch.inf) for reader, _, high in ends]).amax(0)
    is_read = torch.isfinite(low)
    return torch.where(is_read, low, 0.0), torch.where(is_read, high, 0.0)


def _can_shift(pair: Pair) -> bool:
    source = pair.source
    bends = isinstance(source, LayerSource) and (source.layer.site.floor, source.layer.site.ceiling) != (None, None)
    return not bends and source.offset is not None and all(reader.takes_offsets for reader in pair.readers)
