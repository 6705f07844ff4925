"""The mean of what a layer reads: in closed form behind a batch norm, else as it is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from edgeq.arithmetic import along
from edgeq.graph.kinds import module_of
from edgeq.graph.operators import MEANS, operator_of
from edgeq.modules.layer import QuantizedLayer
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.recovery.bank import Call
from edgeq.recovery.calibration import channel_mean
from edgeq.recovery.measured import look
from edgeq.recovery.probe import NOWHERE, Probe, in_float

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule
    from edgeq.recovery.work import Work

KEEPING = (*MEANS, "shape", "getitem", "attribute", "same")  # rows that give what is as great, on average


def clipped_normal_mean(mean: Tensor, deviation: Tensor, floor: float | None, ceiling: float | None) -> Tensor:
    """The mean of normal numbers clipped to floor..ceiling, elementwise (Nagel et al., arXiv 1906.04721, appendix C):
    with standard ends a and b, ``floor P(a) + ceiling (1 - P(b)) + mean (P(b) - P(a)) + deviation (p(a) - p(b))``.
    """
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in (floor or 0.0, ceiling or 0.0))
    mean, deviation = mean.to(torch.float64), deviation.to(torch.float64).clamp(min=1e-30)
    a, b = ((end.to(mean.device) - mean) / deviation for end in (low, high))
    nothing, all_of_it = torch.zeros_like(mean), torch.ones_like(mean)
    below, at_low = (nothing, nothing) if floor is None else (torch.special.ndtr(a), _density(a))
    within, at_high = (all_of_it, nothing) if ceiling is None else (torch.special.ndtr(b), _density(b))
    return low * below + high * (1 - within) + mean * (within - below) + deviation * (at_low - at_high)


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def known_means(network: PreparedModule, call: Call) -> dict[QuantizedLayer, Tensor]:
    """The mean of each input channel, shape (inputs,), of the layers that read nothing but a layer with a batch norm,
    with its activation, through operations that keep the mean. `call` shows the shapes of the network's tensors.
    """
    found = {}
    with in_float(network):
        probe = Probe(network, call)
        for node in network.fx_graph.nodes:
            layer = module_of(node, network.tree)
            if isinstance(layer, QuantizedLayer) and (means := _known(node, layer, network, probe)) is not None:
                found[layer] = means
    return found


def _known(node: fx.Node, layer: QuantizedLayer, network: PreparedModule, probe: Probe) -> Tensor | None:
    start, path = _origin(node, network)
    source = module_of(start, network.tree)
    if not isinstance(source, QuantizedLayer) or source.site.norm is None or source.site.norm.bias is None:
        return None
    end, axis, at = path[-1] if path else start, source.operation.channel_axis, layer.operation.channel_axis
    channels = probe.channels(start, axis, path, {end: at})
    if channels is None or not all(
        probe.carries(start, axis, path, {end: (at, channels[0])}, sign)[end] for sign in (1, -1)
    ):
        return None
    means = output_means(source).to(torch.float32)
    return torch.where(channels[0] == NOWHERE, 0.0, means[channels[0]])


def output_means(layer: QuantizedLayer) -> Tensor:
    """The mean of each output channel, shape (channels,), float64, of a layer with a batch norm, behind its activation;
    what calibration has added to the bias does not count.
    """
    site = layer.site
    assert site.norm is not None
    mean = site.norm.bias * site.factor + site.offset - layer.bias_shift
    return clipped_normal_mean(mean, (site.norm.weight * site.factor).abs(), site.floor, site.ceiling)


def _origin(node: fx.Node, network: PreparedModule) -> tuple[fx.Node, list[fx.Node]]:
    """What a layer's input comes from through operations that keep the mean, and those, in order."""
    path: list[fx.Node] = []
    value: Any = node.args[0]
    while value.op.startswith("call"):
        module = module_of(value, network.tree)
        is_plain = isinstance(module, TensorQuantizer) and not {"floor", "ceiling"} & set(value.kwargs)
        if not is_plain and operator_of(value, module).name not in KEEPING:
            break
        path.insert(0, value)
        value = value.args[0]
    return value, path


def mean_answers(
    work: Work, change: Callable[[QuantizedLayer], Tensor | None], known: dict[QuantizedLayer, Tensor]
) -> dict[QuantizedLayer, Tensor]:
    """What each layer gives on average, shape (channels,), where its deployed weight is `change(layer)`, of the
    weight's shape, and it has no bias: for inputs of the mean that is `known`, else of the mean that is measured in
    the float network at each position. Layers without a change are left out.
    """
    sums: dict[QuantizedLayer, Tensor] = {}
    counts: dict[QuantizedLayer, int] = {}

    def take(layer: QuantizedLayer, x: Tensor, output: Tensor) -> None:
        weight = change(layer)
        if weight is None:
            return
        is_batch = x.dim() == weight.dim() if layer.operation.function != "linear" else x.dim() > 1
        count = len(x) if is_batch else 1
        mean = x.mean(0, keepdim=True) if is_batch else x
        if layer in known:
            mean = along(known[layer].to(x), layer.operation.channel_axis, x.dim()).expand(mean.shape)
        answer = count * channel_mean(layer, layer.operation(mean, weight.to(x.dtype), None))
        sums[layer], counts[layer] = sums.get(layer, 0.0) + answer, counts.get(layer, 0) + count

    look(work.network, work.seen, take)
    return {layer: total / counts[layer] for layer, total in sums.items()}
