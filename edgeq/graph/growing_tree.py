"""A tree of modules that is built path by path, as a conversion makes what the new network calls."""

from __future__ import annotations

from torch import Tensor, fx, nn

RESERVED = "quantization"  # where edgeq keeps its state in a user's tree of modules


class GrowingTree:
    """The modules and tensors of a network to be, under `root`."""

    def __init__(self) -> None:
        self.root = nn.Module()
        self._constants: dict[tuple[str, str], str] = {}

    def install(self, path: str, value: nn.Module | Tensor) -> None:
        """Puts a module or a tensor at a path; a tensor that is there already stays."""
        *parents, name = path.split(".")
        module = self.root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        if isinstance(value, nn.Module):
            module.add_module(name, value)
        elif not hasattr(module, name):
            module.register_buffer(name, value)

    def take_out(self, path: str | None, graph: fx.Graph) -> None:
        """Takes out a module that nothing in the graph calls any more."""
        if path is not None and all(node.target != path for node in graph.nodes if node.op == "call_module"):
            parent, _, name = path.rpartition(".")
            delattr(self.root.get_submodule(parent), name)

    def keep_folded(self, name: str, value: Tensor) -> str:
        """Keeps what constants come to; returns the path."""
        path = reserved_path("folded", name)
        self.install(path, value.clone())
        return path

    def constant_path(self, quantizer: str, attribute_path: str) -> str:
        """Where the codes of an attribute, or with "" those of a table, go: several may have one quantizer."""
        key = quantizer, attribute_path
        if key not in self._constants:
            name = quantizer
            while reserved_path("constants", name) in self._constants.values():
                name += "_"
            self._constants[key] = reserved_path("constants", name)
        return self._constants[key]


def reserved_path(kind: str, name: str) -> str:
    """Where something for a node or a quantizer goes; "to" and "type" are methods of modules."""
    return f"{RESERVED}.{kind}.{name}{'_' if hasattr(nn.Module, name) else ''}"
