"""Quantizers with a scheme, as they stand in a network that is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeq.phase import Phase
from edgeq.quantizers.scheme import set_learning
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.quantizers.weight import WeightQuantizer
from edgeq.spec import Method, Sign, TensorSpec

MINMAX = Method("minmax")


def activation(name: str, **changes) -> TensorQuantizer:
    """The quantizer of an activation, ready to learn; symmetric and of 4 bits, but for `changes`."""
    options = changes.pop("options", {})
    spec = TensorSpec(**({"bits": 4, "symmetric": True, "quantizer": Method(name, tuple(options.items()))} | changes))
    made = TensorQuantizer("features.3", spec, MINMAX, trains=True)
    made.phase = Phase.ADAPT
    set_learning(made, True)
    return made


def weight(name: str, like: Tensor, axis: int = 0, **changes) -> WeightQuantizer:
    """The quantizer of a weight like this one, started from it."""
    plain = {"bits": 4, "symmetric": True, "sign": Sign.SIGNED, "granularity": "channel", "quantizer": Method(name)}
    made = WeightQuantizer(TensorSpec(**(plain | changes)), MINMAX, like.shape[axis], axis, trains=True)
    made.phase = Phase.ADAPT
    set_learning(made, True)
    made.refresh(made.extent(made.transform(like), lambda: torch.ones_like(like)), starts=True)
    return made


def gradients(function, parameters: list[Tensor], upstream: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What a function gives, and the gradients of its product with `upstream`."""
    y = function()
    return y.detach(), list(torch.autograd.grad(y, parameters, upstream))
