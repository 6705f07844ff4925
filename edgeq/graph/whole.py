"""Integer networks inside of a user's model as one integer network, which an exporter can read."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch

from edgeq.errors import ExportError, TraceError
from edgeq.graph.convert import ConvertedModule
from edgeq.graph.in_place import functionalize
from edgeq.graph.inline import inlined
from edgeq.graph.parts import ConvertedParts
from edgeq.graph.prepare import shell_tree
from edgeq.graph.rewrite import drop_unread
from edgeq.graph.trace import trace


def as_one(network: ConvertedParts, inputs: tuple[Any, ...]) -> ConvertedModule:
    """The parts of `network`, and what stands around them, as one graph; it is captured for inputs of the structure
    of `inputs`.

    Raises ExportError when what stands around the parts cannot be captured.
    """
    root = shell_tree(network.face)
    try:
        outer = trace(root, network.paths, inputs)
    except TraceError as error:
        paths = ", ".join(network.parts)
        raise ExportError(
            f"The model cannot be one file, since what stands around its parts cannot be captured: {error}\n"
            f"Its parts ({paths}) can be files of their own: export_parts(example_inputs, folder)."
        ) from error
    for path in functionalize(outer, root):
        root.get_submodule(path).inplace = False  # type: ignore[assignment]
    drop_unread(outer)
    whole = inlined(outer, root, {})
    for path in network.paths:
        part: Any = root.get_submodule(path)
        root.set_submodule(path, part.tree)  # without what only the code around it sees
    qconfigs = [part.qconfig for part in network.parts.values()]
    names = ", ".join(dict.fromkeys(qconfig.name for qconfig in qconfigs))
    backend = next(iter(network.parts.values())).backend
    return ConvertedModule(root, whole, dataclasses.replace(qconfigs[0], name=names, origin=""), backend)


@torch.no_grad()
def inputs_of_parts(network: ConvertedParts, inputs: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
    """The arguments of the first call of each part, by name, when the network runs on `inputs`.

    Raises ExportError for a part that is not called then.
    """
    found: dict[str, dict[str, Any]] = {}
    parts = network.parts

    def note(path: str, part: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.setdefault(path, {**dict(zip(part.argument_names, args, strict=False)), **kwargs})

    hooks = [part.register_forward_pre_hook(partial(note, path), with_kwargs=True) for path, part in parts.items()]
    try:
        network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for path in parts:
        if path not in found:
            raise ExportError(f"The part {path!r} is not called when the network runs on example_inputs.")
    return found
