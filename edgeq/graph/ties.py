"""Output scales at which sums and products round alike, however a runtime computes them.

A sum of two integer tensors can be computed as the file says it, ``round((A + B) / s) + z`` on the numbers that the
codes stand for, or by a fused kernel, ``round(a * s_a/s + b * s_b/s + c)`` with a constant c that holds the zero
points. In real arithmetic the two agree but for ties, which go to the even *sum* in the one and to the even *code*
in the other: they differ wherever the zero point is odd and the scales make ties common, as powers of two do. In
float32 they also differ next to ties. There are only 2**16 pairs of codes, so an even zero point and a scale
that is greater by a few parts in 2**16 can be looked for until no pair differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from edgeq import arithmetic
from edgeq.arithmetic import Rounding, dequantize
from edgeq.graph.kinds import module_of
from edgeq.graph.operators import MEANS, operator_of
from edgeq.modules.pair import PAIRED
from edgeq.qparams import QParams
from edgeq.quantizers.kernel import grid_of
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.spec import ScaleKind

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule

CODES = 1 << 8  # the most codes of an operand
TRIES = 64  # scales
NUDGE = 2.0**-16  # by which one is greater than the one before
MEAN_NUDGE = 2.0**-12


class Pairing(NamedTuple):
    """A sum or product of two quantized tensors, and the activation function behind it."""

    kind: str
    left: TensorQuantizer
    right: TensorQuantizer
    floor: float | None
    ceiling: float | None


@torch.no_grad()
def avoid_ties(network: PreparedModule) -> None:
    """Adjusts, in place and in the order of the data, the quantizers behind sums and products."""
    for target, pairings in _pairings(network).items():
        best = min(_candidates(target), key=_Differing(target, pairings))
        target.scale.copy_(best.scale)
        target.zero_point.copy_(best.zero_point)
    for target, source in _means(network):
        if bool(target.scale == source.scale):  # a mean of few numbers, of which one is the greatest everywhere
            target.scale.mul_(1 + MEAN_NUDGE)


def _means(network: PreparedModule) -> Iterator[tuple[TensorQuantizer, TensorQuantizer]]:
    """The quantizers behind means, weighted ones too, whose scale is free, and those of what the means are taken of.
    At one scale the mean of n codes is a tie wherever the remainder of their sum by n is half of it, at any other
    hardly ever.
    """
    for node in network.fx_graph.nodes:
        target: Any = module_of(node, network)
        mean: Any = node.args[0] if isinstance(target, TensorQuantizer) else None
        if mean is None or not mean.op.startswith("call") or not _is_adjustable(target):
            continue
        source = network.quantizer_of(mean.all_input_nodes[0].name) if mean.all_input_nodes else None
        is_mean = operator_of(mean, module_of(mean, network)).name in MEANS
        if is_mean and source is not None and source is not target and target.spec.scale is ScaleKind.FREE:
            yield target, source


def _pairings(network: PreparedModule) -> dict[TensorQuantizer, list[Pairing]]:
    """What each quantizer that may be adjusted stands behind."""
    found: dict[TensorQuantizer, list[Pairing]] = {}
    for node in network.fx_graph.nodes:
        target: Any = module_of(node, network)
        source: Any = node.args[0] if isinstance(target, TensorQuantizer) else None
        if source is None or not _is_adjustable(target):
            continue
        kind = operator_of(source, module_of(source, network)).name if source.op.startswith("call") else ""
        operands = [network.quantizer_of(value.name) for value in source.all_input_nodes]
        if kind not in FUSED or len(source.args) != 2 or source.kwargs or len(operands) != 2:
            continue
        left, right = operands
        if left is not None and right is not None and max(map(_count, operands)) <= CODES:
            pairing = Pairing(kind, left, right, node.kwargs.get("floor"), node.kwargs.get("ceiling"))
            found.setdefault(target, []).append(pairing)
    return found


def _is_adjustable(target: TensorQuantizer) -> bool:
    spec = target.spec
    free = target.observer is not None and target.observed and spec.fixed_range is None
    return free and spec.rounding is Rounding.HALF_EVEN and _count(target) <= CODES


def _count(quantizer: TensorQuantizer | None) -> int:
    """How many codes there are; of numbers that are no codes, too many."""
    if quantizer is None:
        return 0
    return 1 << quantizer.spec.bits if quantizer.is_uniform else 2 * CODES


def _candidates(target: TensorQuantizer) -> Iterator[QParams]:
    """The numbers in force; the same with an even zero point; and with that, greater and greater scales."""
    now = target.qparams
    yield now
    even = now.zero_point
    if not target.spec.symmetric:
        even = even - even % 2 if bool(even > now.quant_min) else even + even % 2
        yield now._replace(zero_point=even)
    if target.spec.scale is not ScaleKind.POWER_OF_TWO:
        for step in range(1, TRIES):
            yield now._replace(scale=now.scale * (1 + step * NUDGE), zero_point=even)


class _Differing:
    """How many pairs of codes come out differently; what follows the first candidate without any is not tried."""

    def __init__(self, target: TensorQuantizer, pairings: list[Pairing]) -> None:
        self.target, self.pairings, self.done = target, pairings, False

    def __call__(self, candidate: QParams) -> float:
        if self.done:
            return float("inf")
        count = sum(self._of(candidate, pairing) for pairing in self.pairings)
        self.done = count == 0
        return count

    def _of(self, out: QParams, pairing: Pairing) -> int:
        left, right = (out if q is self.target else q.qparams for q in (pairing.left, pairing.right))
        low, high = (end + out.zero_point for end in grid_of(out, pairing.floor, pairing.ceiling)[1:])
        a = torch.arange(int(left.quant_min), int(left.quant_max) + 1, device=out.scale.device)[:, None]
        b = torch.arange(int(right.quant_min), int(right.quant_max) + 1, device=out.scale.device)[None]
        real = PAIRED[pairing.kind](dequantize(a, *left[:2]), dequantize(b, *right[:2]))
        codes = arithmetic.quantize(real, out.scale, out.zero_point, low, high)
        others = [
            arithmetic.clamp(torch.round(value), low, high) for value in FUSED[pairing.kind](a, b, left, right, out)
        ]
        return int(torch.stack([other != codes for other in others]).any(0).sum())


def _fused_sum(a: Tensor, b: Tensor, left: QParams, right: QParams, out: QParams) -> tuple[Tensor, ...]:
    """The real codes of a fused sum, with and without fused multiply-add."""
    first, second = left.scale / out.scale, right.scale / out.scale
    constant = out.zero_point - (first * left.zero_point + second * right.zero_point)
    plain = a * first + (b * second + constant)
    inner = (b * second.double() + constant).float()
    return plain, (a * first.double() + inner).float()


def _fused_product(a: Tensor, b: Tensor, left: QParams, right: QParams, out: QParams) -> tuple[Tensor, ...]:
    """The real codes of a fused product, with and without fused multiply-add."""
    factor = left.scale * right.scale / out.scale
    product = ((a - left.zero_point) * (b - right.zero_point)).float()
    return product * factor + out.zero_point, (product * factor.double() + out.zero_point).float()


FUSED: dict[str, Callable[..., tuple[Tensor, ...]]] = {"add": _fused_sum, "mul": _fused_product}
