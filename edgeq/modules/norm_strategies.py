"""How a layer is simulated, while it is trained, with the batch norm behind it that will be folded into it.

All strategies end in the same integers: at evaluation the weight is folded with the running statistics. They differ in
what the weight is rounded with while the statistics move (Krishnamoorthi, arXiv 1806.08342, section 3.2; Li et al.,
MQBench, arXiv 2111.03759, section 3.3, whose numbers are given).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgeq.errors import SpecError
from edgeq.modules.folding import BatchNorm, norm_factor, statistics
from edgeq.registry import Registry

if TYPE_CHECKING:
    from edgeq.modules.layer import QuantizedLayer


class NormStrategy:
    """By default number 4: the norm sees the output of a weight that is rounded as the running statistics deploy it,
    and works on the batch as ever. One convolution a step.
    """

    folds = True  # whether the norm is folded into the layer before it
    follows_batches = True  # whether the norm may use, and update, statistics while the network is trained
    rounds_raw = True  # whether it is the weight beside the norm that is rounded

    def check(self, layers: list[QuantizedLayer]) -> None:
        """Raises SpecError for a network that cannot be trained this way."""

    def start(self, layer: QuantizedLayer) -> None:
        """Called when training begins, and again at every return to it."""

    def simulate(self, layer: QuantizedLayer, x: Tensor) -> Tensor:
        """The output of a layer whose norm is live."""
        return layer.simulated_beside_norm(x)


NORM_STRATEGIES: Registry[type[NormStrategy]] = Registry("batch-norm strategy")
NORM_STRATEGIES.register("live")(NormStrategy)


@NORM_STRATEGIES.register("separate")
class Separate(NormStrategy):
    """Number -1: the norm stays an operation of its own, which costs a rounding: hardware has no place for it."""

    folds = False


@NORM_STRATEGIES.register("frozen")
class Frozen(NormStrategy):
    """Number 1: folded with the running statistics from the first step on, which stand still; gamma and beta learn."""

    follows_batches = False


@NORM_STRATEGIES.register("merged")
class Merged(Frozen):
    """Number 0: weight and bias take the norm in before the training, which leaves it one that does nothing but add
    its beta, the bias from now on. Parameters keep their names; gamma, and the layer's own bias, learn no more.
    """

    def check(self, layers: list[QuantizedLayer]) -> None:
        merging = [layer for layer in layers if layer.site.norm is not None]
        uses = Counter(layer.weight.data_ptr() for layer in layers) + Counter(id(layer.site.norm) for layer in merging)
        for layer in merging:
            one_use = uses[layer.weight.data_ptr()] == 1 and uses[id(layer.site.norm)] == 1
            if not one_use or not isinstance(layer.site.norm, BatchNorm):
                raise SpecError(
                    f'batch_norm = "merged" changes the weight of {layer.site.name!r} for the batch norm behind it, '
                    'but others use that weight or that norm too. Choose another strategy, such as "live".'
                )

    @torch.no_grad()
    def start(self, layer: QuantizedLayer) -> None:
        site = layer.site
        norm = site.norm
        if norm is None:
            return
        mean, var = statistics(norm)
        one = torch.ones_like(var).sub_(norm.eps)
        if torch.equal(var, one):  # it has been taken in
            return
        factor = norm_factor(norm)
        shift = -mean if layer.bias is None else layer.bias - mean
        layer.weight.mul_(layer.operation.per_output(factor, layer.weight))
        shift = shift * factor if norm.bias is None else norm.bias + shift * factor
        mean.zero_()
        var.copy_(one)
        if norm.weight is not None:
            norm.weight.fill_(1.0).requires_grad_(False)
        if norm.bias is None:
            mean.copy_(-shift)
        else:
            norm.bias.copy_(shift)
        if layer.bias is not None:
            layer.bias.zero_().requires_grad_(False)


@NORM_STRATEGIES.register("batch")
class Batch(NormStrategy):
    """Number 2: a convolution in float gives the statistics of the batch, and the weight is folded with those. Two
    convolutions a step.
    """

    rounds_raw = False

    def simulate(self, layer: QuantizedLayer, x: Tensor) -> Tensor:
        if layer.site.before is not None or not isinstance(layer.site.norm, BatchNorm):  # a slice of one, say
            return super().simulate(layer, x)
        return self._with_statistics(layer, x, *_seen(layer, x))

    def _with_statistics(self, layer: QuantizedLayer, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        factor = _gain(layer, var)
        output = layer.operation(x, _quantized(layer, factor), None)
        return _shifted(layer, output, mean, factor)


@NORM_STRATEGIES.register("corrected")
class Corrected(Batch):
    """Number 3: as "batch", but what is rounded is the weight as the running statistics deploy it, which moves less;
    the output is corrected to the batch's deviation.
    """

    def _with_statistics(self, layer: QuantizedLayer, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        running: Any = layer.site.norm
        factor = _gain(layer, var)
        weight = _quantized(layer, _gain(layer, running.running_var))
        correction = torch.rsqrt(var + running.eps) * torch.sqrt(running.running_var + running.eps)
        output = layer.operation(x, weight, None)
        return _shifted(layer, output * layer.operation.spread(correction, output), mean, factor)


def _gain(layer: QuantizedLayer, var: Tensor) -> Tensor:
    """What a norm with this variance multiplies a channel with; shape (channels,)."""
    norm: Any = layer.site.norm
    factor = torch.rsqrt(var + norm.eps)
    return factor if norm.weight is None else norm.weight * factor


def _quantized(layer: QuantizedLayer, factor: Tensor) -> Tensor:
    """The weight with a norm folded in that multiplies with `factor`, shape (channels,), as its codes keep it."""
    quantizer = layer.weight_quantizer
    weight = quantizer.transform(layer.latent)
    gain = layer.operation.per_output(factor * layer.site.factor, weight)
    folded = weight * gain
    if quantizer.follows:
        quantizer.refresh(quantizer.extent(folded, lambda: gain).detach(), starts=True, gain=lambda: gain)
    return quantizer(folded)


def _shifted(layer: QuantizedLayer, output: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """What remains of the norm and what follows it: the bias of a layer with these statistics."""
    site, norm = layer.site, layer.site.norm
    assert norm is not None
    shift = -mean * factor if layer.bias is None else (layer.bias - mean) * factor
    shift = shift if norm.bias is None else norm.bias + shift
    return output + layer.operation.spread(shift * site.factor + site.offset, output)


def _seen(layer: QuantizedLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the float output's channels over the batch, which the running statistics take in;
    differentiable, and over all processes for a synchronized norm. In float32 also of an output in half precision, and
    around the mean: a variance that is far smaller than the mean's square would be lost, or the bias would hide it.
    """
    norm: Any = layer.site.norm
    output = layer.operation(x, layer.weight, None)
    channels = output.transpose(0, layer.operation.channel_axis).flatten(1).to(torch.float32)
    count = _summed(torch.full((), float(channels.shape[1]), device=x.device), norm)
    mean = _summed(channels.sum(1), norm) / count
    var = _summed((channels - mean.unsqueeze(1)).square().sum(1), norm) / count
    mean = mean if layer.bias is None else mean + layer.bias
    with torch.no_grad():
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        momentum = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
        norm.running_var.lerp_((var * count / (count - 1).clamp(min=1)).to(norm.running_var.dtype), momentum)
    return mean, var


def _summed(x: Tensor, norm: BatchNorm) -> Tensor:
    """The sum over all processes for a synchronized norm; differentiable."""
    if isinstance(norm, nn.SyncBatchNorm) and torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.nn.functional import all_reduce

        summed: Tensor = all_reduce(x)
        return summed
    return x
