"""Where the scales of a prepared network are taken from: what was observed, what was learned, or new calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from edgeq.graph.ties import avoid_ties
from edgeq.modules.stored import StoredWeights
from edgeq.phase import Phase, set_phase
from edgeq.quantizers.scheme import Scheme

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule


@torch.no_grad()
def take_ranges(network: PreparedModule) -> None:
    """Takes all scales from what was observed, and from the weights as they are."""
    for scheme in network.schemes():
        scheme.hold()
    for tensor in network.quantizers():
        tensor.finish()
    avoid_ties(network)
    for layer in network.quantized_layers():
        layer.finish()
    for module in network.own_modules():
        if isinstance(module, StoredWeights):
            module.refresh()


@torch.no_grad()
def take_learned(network: PreparedModule) -> None:
    """Takes what quantizers have learned, which the last step of an optimizer has changed; here, or before a checkpoint
    was saved that an evaluation has loaded.
    """
    for scheme in network.schemes():
        scheme.hold()
    tensors = [tensor for tensor in network.quantizers() if tensor.scheme is not None]
    for tensor in tensors:
        tensor.finish()
    if tensors:
        avoid_ties(network)
    for layer in network.quantized_layers():
        if layer.weight_quantizer.scheme is not None:
            layer.finish()
    for module in network.own_modules():
        if isinstance(module, StoredWeights) and any(isinstance(part, Scheme) for part in module.modules()):
            module.refresh()


@torch.no_grad()
def observe(network: PreparedModule, calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
    """Takes all ranges anew, from what `calls`, arguments and keyword arguments, give in evaluation. What was learned
    of the old ones is forgotten: a training that goes on starts from these.
    """
    network.change_mode(False)
    for tensor in network.quantizers():
        if tensor.observer is not None:
            tensor.observer.reset()
    for scheme in network.schemes():
        scheme.restart()
    set_phase(network, Phase.OBSERVE)
    try:
        for args, kwargs in calls:
            network.run(*args, **kwargs)
    finally:
        network.apply_mode()
    take_ranges(network)
    network.apply_mode()
