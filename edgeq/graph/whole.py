"""Integer networks inside of a user's model as one integer network, which an exporter can read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgeq.errors import ExportError, TraceError
from edgeq.graph.convert import ConvertedModule
from edgeq.graph.inline import inlined
from edgeq.graph.parts import ConvertedParts
from edgeq.graph.rewrite import drop_unread, functionalize
from edgeq.graph.trace import trace


def as_one(network: ConvertedParts, inputs: tuple[Any, ...]) -> ConvertedModule:
    """The parts of `network`, and what stands around them, as one graph; it is captured for inputs of the structure
    of `inputs`.

    Raises ExportError when what stands around the parts cannot be captured.
    """
    face = network.face
    try:
        outer = trace(face, network.paths, inputs)
    except TraceError as error:
        paths = ", ".join(network.paths)
        raise ExportError(
            f"The model cannot be one file, since what stands around its parts cannot be captured: {error}\n"
            f"Its parts ({paths}) can be files of their own: export_parts(example_inputs, folder)."
        ) from error
    for path in functionalize(outer, face):
        face.get_submodule(path).inplace = False  # type: ignore[assignment]
    drop_unread(outer)
    graph, operations = inlined(outer, face, {})
    first = next(iter(network.parts.values()))
    return ConvertedModule(face, graph, first.qconfig, first.backend, operations)


@torch.no_grad()
def inputs_of_parts(network: ConvertedParts, inputs: tuple[Any, ...]) -> dict[str, tuple[Any, ...]]:
    """The arguments of the first call of each part, in order, when the network runs on `inputs`."""
    found: dict[str, tuple[Any, ...]] = {}

    def note(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = next(path for path, other in network.parts.items() if other is part)
        names = part.argument_names[len(args) :]  # type: ignore[operator, index]
        found.setdefault(path, (*args, *(kwargs[name] for name in names if name in kwargs)))

    hooks = [part.register_forward_pre_hook(note, with_kwargs=True) for part in network.parts.values()]
    try:
        network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found
