"""What does nothing stands between operations that could become one."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from edgeq.graph.conditions import DROPOUTS
from edgeq.graph.passes.draft import Draft
from edgeq.graph.passes.registry import Stage, rewrite
from edgeq.modules.torch_class import torch_class

DIMENSIONS = {nn.Dropout1d: 1, nn.Dropout3d: 3}  # of the maps that they drop whole; the others take two as well


@rewrite("identity_removal", Stage.TIDY, "nn.Identity, and dropout that never drops -> nothing")
def identity_removal(draft: Draft) -> None:
    """Takes out calls of nn.Identity and of dropouts with p = 0; for calibration, which never drops, of all dropouts.
    In training the others stay and act. The modules keep their places in the tree, and those with hooks their calls.
    """
    for node in draft.nodes():
        module = draft.module(node)
        if not _does_nothing(module, draft.is_qat) or module._forward_hooks or module._forward_pre_hooks:
            continue
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not draft.gives_way(node, source):
            continue
        x = draft.sample(2, 4, *(3,) * DIMENSIONS.get(torch_class(module), 2))
        draft.record(node, f"{type(module).__name__} -> nothing", x, draft.value(node, {source: x}))
        node.replace_all_uses_with(source)
        draft.erase([node])


def _does_nothing(module: Any, is_qat: bool) -> bool:
    if torch_class(module) is nn.Identity:
        return True
    return torch_class(module) in DROPOUTS.values() and (not is_qat or float(module.p) == 0.0)
