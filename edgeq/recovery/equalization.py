"""Cross-layer equalization: channels that follow one another take equal shares of a tensor's range."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeq.modules.layer import QuantizedLayer
from edgeq.quantizers.tensor import clip
from edgeq.recovery.anew import calibrate_anew
from edgeq.recovery.measured import Ends, Measured
from edgeq.recovery.pairs import Pair, find_pairs
from edgeq.recovery.registry import RECOVERY_STEPS
from edgeq.recovery.sources import LayerSource, multiply_inputs

if TYPE_CHECKING:
    from edgeq.recovery.work import Work

ROUNDS = 200  # at most; each brings the ranges of a pair to what they have in common
SETTLED = 1e-4  # the greatest relative change of a scale in the last round
HEADROOM = 1.25  # how far beyond what was measured a bounded activation is taken to reach
TINY = 1e-30


@RECOVERY_STEPS.register("equalization", {"reach": (0.0, 1e6)})
def equalization(work: Work, *, reach: float = 2.0) -> str:
    """Divides each channel of a layer by ``s = r1 / sqrt(r1 r2)`` and multiplies what the next layers do with it by
    the same, where r1 and r2 are the greatest absolute values of the channel's deployed weights in the one and in the
    others: both become ``sqrt(r1 r2)`` (Nagel et al., arXiv 1906.04721, section 4.1). Repeated over all pairs until
    the scales stand still, which for a depthwise layer between two others makes all three ranges their geometric mean.

    The float function stays as it is: see `limits`. `reach` says how many times the greatest of its tensor a channel's
    activation may become at most, so that one of small weights and a large bias does not cost the others their codes;
    0 for any.
    """
    pairs = [pair for pair in find_pairs(work.network, work.seen[0]).found if isinstance(pair.source, LayerSource)]
    if not pairs:
        return "no pairs"
    measured = Measured(work.network, work.seen)
    layers = [_layers(pair)[0] for pair in pairs]
    bounds = [limits(layer, measured.outputs[layer], reach) for layer in layers]
    scales = solve(pairs, bounds)
    for pair, scale in zip(pairs, scales, strict=True):
        rescale(pair, scale)
    calibrate_anew(work)
    fixed = sum(int((least == greatest).sum()) for least, greatest in bounds)
    return f"{len(pairs)} pairs; {fixed} of {sum(map(len, scales))} channels reach a bound and keep their scale"


@torch.no_grad()
def rescale(pair: Pair, scale: Tensor) -> None:
    """Divides the channels of a pair's source by `scale`, shape (channels,), and lets its readers make good for it."""
    pair.source.divide(scale.to(pair.source.written[0]))
    for reader in pair.readers:
        multiply_inputs(reader.layer, reader.spread(scale, 1.0).to(reader.layer.weight))


def limits(layer: QuantizedLayer, ends: Ends, reach: float) -> Ends:
    """The least and the greatest scale that a layer's channels may be divided by, for outputs that lie between `ends`
    before the activation, and the function to stay what it is.

    A ReLU allows any. A channel that reaches the ceiling of a ReLU6, or the floor or ceiling of a hardtanh, within
    `HEADROOM` keeps its scale; another one may grow until it does.
    """
    low, high = ends
    floor, ceiling = layer.site.floor, layer.site.ceiling
    shares = [torch.zeros_like(high)]  # how much of the way to a bound a channel goes
    if ceiling is not None:
        shares.append(high / ceiling if ceiling > 0 else torch.full_like(high, torch.inf))
    if floor is not None and floor != 0:
        shares.append(low / floor if floor < 0 else torch.full_like(low, torch.inf))
    least = HEADROOM * torch.stack(shares).amax(0)
    is_fixed = least > 1
    if reach > 0:
        size = torch.stack([clip(end.clone(), floor, ceiling, fresh=True).abs() for end in ends]).amax(0)
        least = torch.maximum(least, (size / (reach * size.amax().clamp(min=TINY))).clamp(max=1))
    return torch.where(is_fixed, 1.0, least), torch.where(is_fixed, 1.0, torch.inf)


@torch.no_grad()
def solve(pairs: list[Pair], bounds: list[Ends]) -> list[Tensor]:
    """The scale of each channel of each pair, between its bounds, at which the ranges of both sides are equal, or as
    nearly so as the bounds allow; float32. Channels that are zero on either side keep theirs.
    """
    tables: dict[QuantizedLayer, Tensor] = {}
    for layer in {layer: None for pair in pairs for layer in _layers(pair)}:
        tables[layer] = weight_table(layer)
    scales = [torch.ones(pair.source.channels, device=low.device) for pair, (low, _) in zip(pairs, bounds, strict=True)]
    for _ in range(ROUNDS):
        change = 0.0
        for number, (pair, (low, high)) in enumerate(zip(pairs, bounds, strict=True)):
            first, second = _ranges(pair, tables)
            wanted = torch.where((first > 0) & (second > 0), (first / second).sqrt(), 1.0)
            factor = (scales[number] * wanted).clamp(low, high) / scales[number]
            scales[number] *= factor
            _apply(pair, factor, tables)
            change = max(change, float((factor.log().abs()).amax()))
        if change < SETTLED:
            break
    return scales


def weight_table(layer: QuantizedLayer) -> Tensor:
    """The greatest absolute value of the deployed weight between each output and each input of its group; shape
    (outputs, inputs / groups), float32.
    """
    weight = layer.folded(layer.weight, layer.bias)[0].to(torch.float32)
    inputs = weight.shape[0] // layer.operation.groups if layer.operation.transposed else weight.shape[1]
    return layer.operation.rows(weight).unflatten(1, (inputs, -1)).abs().amax(2)


def read_range(pair: Pair, tables: list[Tensor]) -> Tensor:
    """The range of each channel of a pair in the weights of its readers, of which the tables are given."""
    ranges = []
    for reader, table in zip(pair.readers, tables, strict=True):
        of_inputs = table.unflatten(0, (reader.layer.operation.groups, -1)).amax(1).flatten()
        ranges.append(reader.gathered(of_inputs, pair.source.channels, 0.0))
    return torch.stack(ranges).amax(0)


def _layers(pair: Pair) -> list[QuantizedLayer]:
    assert isinstance(pair.source, LayerSource)
    return [pair.source.layer, *(reader.layer for reader in pair.readers)]


def _ranges(pair: Pair, tables: dict[QuantizedLayer, Tensor]) -> Ends:
    """The range of each channel of a pair in the source, and in the readers."""
    source, *_ = _layers(pair)
    return tables[source].amax(1), read_range(pair, [tables[reader.layer] for reader in pair.readers])


def _apply(pair: Pair, factor: Tensor, tables: dict[QuantizedLayer, Tensor]) -> None:
    source, *_ = _layers(pair)
    tables[source] /= factor[:, None]
    for reader in pair.readers:
        table, groups = tables[reader.layer], reader.layer.operation.groups
        of_inputs = reader.spread(factor, 1.0).unflatten(0, (groups, -1))  # (groups, inputs / groups)
        table *= of_inputs.repeat_interleave(len(table) // groups, 0)
