"""Hooks on a user's modules that a quantized network does not run. It is told, since they may change numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import fx, nn

from edgeq.graph.trace import is_whole

logger = logging.getLogger(__name__)


def hooked(model: nn.Module) -> set[str]:
    """The paths of the modules whose inputs or outputs hooks see; the empty one is the model's own."""
    return {path for path, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks}


def lost_hooks(model: nn.Module, graph: fx.Graph) -> set[str]:
    """The paths of the modules of `model` whose hooks its quantized graph does not run: the model itself, and leaves
    that are parts of others by now. Those of what was traced into are in the graph.
    """
    calls = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    leaves = {path for path in hooked(model) if not path or is_whole(model.get_submodule(path))}
    return leaves - calls


def without_hooks(module: nn.Module) -> nn.Module:
    """The module itself, which from now on runs no hooks."""
    module._forward_hooks.clear()
    module._forward_pre_hooks.clear()
    return module


def tell_of_lost_hooks(network: str, lost: Iterable[str]) -> None:
    """Warns that what is called `network` in messages does not run the hooks on the modules at the paths `lost`."""
    places = ", ".join(path or "the model itself" for path in sorted(lost))
    if places:
        logger.warning(
            "%s does not run the hooks on: %s. What they change, if anything, must be written into the forward.",
            *(network, places),
        )
