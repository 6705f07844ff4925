"""Bias calibration, and the steps that a preset adds to it, over the layers in the order of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeq.errors import CalibrationError
from edgeq.phase import Phase, set_phase
from edgeq.recovery.bank import Call
from edgeq.recovery.registry import LAYER_STEPS

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule
    from edgeq.modules.layer import QuantizedLayer

Recorder = Callable[["QuantizedLayer", Tensor, Tensor], Tensor]


@dataclass
class Calibration:
    """What a calibration ends with.

    Bias calibration moves each layer's bias by ``factor * (mean of the float output - mean of the quantized
    output)`` for each channel, once a batch that was seen. The move is made once for n batches, by
    ``1 - (1 - factor)**n``, which is what n small moves of the same error come to, on a sample of the inputs
    that was kept; where its samples cannot be joined to one call, by the mean over the calls. The layers are
    taken in the order in which data flows, so that each one corrects what its predecessors, already corrected,
    leave (Nagel et al., arXiv 1906.04721, section 4.2; Finkelstein et al., arXiv 1906.03193). `steps` are names
    of `LAYER_STEPS`, run at each layer before its bias is measured.
    """

    factor: float
    steps: tuple[str, ...] = ()

    @property
    def is_wanted(self) -> bool:
        """Whether there is anything to do."""
        return self.factor > 0 or bool(self.steps)

    @torch.no_grad()
    def run(self, network: PreparedModule, calls: list[Call], batches: int) -> None:
        """For `calls`, which stand for so many batches that were seen: the float network's means, then the quantized
        network, corrected as the data arrives at each layer. Leaves the modes of all modules as they were.
        """
        modes = {module: module.training for module in network.modules()}
        phase = {module: module.phase for module in modes if hasattr(module, "phase")}
        for module in modes:
            module.training = False
        move = 1 - (1 - self.factor) ** batches
        movable = with_own_bias(network.quantized_layers())
        moved: dict[QuantizedLayer, Tensor] = {}
        try:
            for number, call in enumerate(calls):
                means = _Means()
                run_recorded(network, Phase.FLOAT, call, means)
                steps = self.steps if number == 0 else ()
                correction = _Correction(means.of, movable, move, moved, 1 / (number + 1), steps)
                run_recorded(network, Phase.QUANTIZE, call, correction)
        finally:
            for module, mode in modes.items():
                module.training = mode
            for module, before in phase.items():
                module.phase = before


def run_recorded(network: PreparedModule, phase: Phase, call: Call, recorder: Recorder) -> None:
    """Runs a network that evaluates in `phase`, in which it is left, and shows `recorder` each of its layers, with its
    input and its output before the activation; what it returns takes the output's place.
    """
    args, kwargs = call
    layers = network.quantized_layers()
    set_phase(network, phase)
    for layer in layers:
        layer.recorder = recorder
    try:
        network.run(*args, **kwargs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise CalibrationError(
            "A calibration ends with the network being run once more, on samples of its inputs that are taken, and "
            f"joined, along their first dimension. The network does not take them: {error}. Let that dimension be "
            "the batch, or set bias_calibration_factor=0 and choose a preset without recovery steps."
        ) from error
    finally:
        for layer in layers:
            layer.recorder = None
            layer.forget()


class _Means:
    """Records each layer's mean output, shape (channels,)."""

    def __init__(self) -> None:
        self.of: dict[QuantizedLayer, Tensor] = {}

    def __call__(self, layer: QuantizedLayer, x: Tensor, output: Tensor) -> Tensor:
        self.of[layer] = channel_mean(layer, output)
        return output


class _Correction:
    """Runs the recovery steps of each layer, then moves its bias, and lets the corrected output go on.

    `moved` holds what the calls before have moved; `share` is this call's share in the mean over all so far.
    """

    def __init__(
        self,
        means: dict[QuantizedLayer, Tensor],
        movable: set[QuantizedLayer],
        move: float,
        moved: dict[QuantizedLayer, Tensor],
        share: float,
        steps: tuple[str, ...],
    ) -> None:
        self.means, self.movable, self.move, self.moved, self.share = means, movable, move, moved, share
        self.steps = [LAYER_STEPS[step] for step in steps]

    def __call__(self, layer: QuantizedLayer, x: Tensor, output: Tensor) -> Tensor:
        for step in self.steps:
            step(layer, x)
        if self.steps:
            output = layer.simulated(x)
        if layer not in self.movable or self.move == 0:
            return output
        before = self.moved.get(layer, torch.zeros_like(layer.bias_shift))
        error = self.means[layer] - channel_mean(layer, output) + before
        shift = self.share * (self.move * error - before)
        self.moved[layer] = before + shift
        layer.move_bias(shift)
        return output + layer.operation.spread(shift, output).to(output.dtype)


def channel_mean(layer: QuantizedLayer, output: Tensor) -> Tensor:
    """Mean over everything but the channels, shape (channels,), over all processes."""
    channels = output.to(torch.float32).transpose(0, layer.operation.channel_axis)
    mean = channels.reshape(len(channels), -1).mean(1)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean.div_(torch.distributed.get_world_size())
    return mean


def with_own_bias(layers: list[QuantizedLayer]) -> set[QuantizedLayer]:
    """The layers whose bias can be moved. Layers without one, and layers that share one, whose calls would move
    it in different directions, are left out.
    """
    biases = {layer: layer.deployed_bias for layer in layers}
    places = {layer: bias.data_ptr() for layer, bias in biases.items() if bias is not None}  # of a view too
    uses = Counter(places.values())
    return {layer for layer, place in places.items() if uses[place] == 1}
