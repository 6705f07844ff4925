"""A user's model is captured without leaving a trace on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

logger = logging.getLogger(__name__)


@contextmanager
def undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """In the mode that is told, after which the modules of `model` have the attributes that they had, modes among them,
    and the buffers their values: a forward may write to both. Only tensors that are new on `model` itself stay there.
    """
    attributes = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    buffers = {id(each): each for _, _, held in attributes for each in held.values() if each is not None}
    values = [(each, each._version, each.detach().clone()) for each in buffers.values() if not each.is_inference()]
    try:
        model.train(training)
        yield
    finally:
        changed = [(each, value) for each, version, value in values if each._version != version]
        written = {id(each) for each, _ in changed}
        paths = {module: path for path, module in model.named_modules()}
        names = [
            f"{paths[module]}.{name}".removeprefix(".")
            for module, _, held in attributes
            for name, each in held.items()
            if id(each) in written or module._buffers.get(name) is not each
        ]
        for module, found, held in attributes:
            new = {name for name in vars(module) if name not in found}
            stays = {name for name in new if module is model and isinstance(vars(module)[name], Tensor)}
            module.__dict__.update(found)
            for name in new - stays:
                del module.__dict__[name]
            module._buffers.update(held)
        for each, value in changed:
            each.data.copy_(value)
        if names and not training:
            logger.warning(
                "The forward of %s writes into buffers: %s. Its graph does not: they keep their values.",
                *(type(model).__name__, ", ".join(names)),
            )
