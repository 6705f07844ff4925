"""Integer networks inside of a user's model as one integer network, which an exporter can read."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from edgeq.errors import ExportError, TraceError
from edgeq.graph.convert import ConvertedModule
from edgeq.graph.parts import ConvertedParts
from edgeq.graph.rewrite import drop_unread, functionalize
from edgeq.graph.trace import trace

Node = Any  # torch.fx.Node: its arguments are typed too widely to be of use


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
    return _Inliner(network, outer).inlined()


class _Inliner:
    """Copies the outer graph, with the graph of each part in the place of its calls."""

    def __init__(self, network: ConvertedParts, outer: fx.Graph) -> None:
        self.network, self.outer = network, outer
        self.graph = fx.Graph()
        self.operations: dict[str, str] = {}

    def inlined(self) -> ConvertedModule:
        """The whole as one network."""
        values: dict[Node, Any] = {}
        for node in self.outer.nodes:
            part = self.network.face.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(part, ConvertedModule):
                args, kwargs = (_mapped(item, values) for item in (node.args, node.kwargs))
                values[node] = self._call(str(node.target), part, args, kwargs)
            elif node.op == "output":
                self.graph.output(_mapped(node.args[0], values))
            else:
                values[node] = self._copied(node, _mapped(node.args, values), _mapped(node.kwargs, values))
        self.graph.lint()
        first = next(iter(self.network.parts.values()))
        return ConvertedModule(self.network.face, self.graph, first.qconfig, first.backend, self.operations)

    def _copied(self, node: Node, args: Any, kwargs: Any, prefix: str = "") -> Node:
        target = f"{prefix}{node.target}" if node.op in ("call_module", "get_attr") else node.target
        name = f"{prefix.replace('.', '_')}{node.name}"
        return self.graph.create_node(node.op, target, args, kwargs, name)

    def _call(self, path: str, part: ConvertedModule, args: Any, kwargs: Any) -> Any:
        names = [node for node in part.fx_graph.nodes if node.op == "placeholder"]
        given = {**dict(zip((str(node.target) for node in names), args, strict=False)), **kwargs}
        values: dict[Node, Any] = {}
        for node in part.fx_graph.nodes:
            if node.op == "placeholder":
                values[node] = given[node.target] if node.target in given else node.args[0]
            elif node.op == "output":
                return _mapped(node.args[0], values)
            else:
                made = self._copied(node, _mapped(node.args, values), _mapped(node.kwargs, values), f"{path}.")
                values[node] = made
                if node.name in part.operations:
                    self.operations[made.name] = part.operations[node.name]
        raise AssertionError("a graph without an output")


def _mapped(value: Any, values: dict[Node, Any]) -> Any:
    """`value` with what stands for each node in place of it, which may be a container."""
    if isinstance(value, fx.Node):
        return values[value]
    if isinstance(value, dict):
        return {key: _mapped(item, values) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_mapped(item, values) for item in (value.start, value.stop, value.step)))
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, values) for item in value)
    return value


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
