"""A module that keeps its user's tree of submodules and runs a torch.fx graph over it."""

from __future__ import annotations

import copy
import importlib
import linecache
import weakref
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from edgeq.graph.face import SHARED, attribute_of
from edgeq.graph.kinds import module_of
from edgeq.modules.handover import HandsOver
from edgeq.modules.layers import shell

_numbers = count()


class Program(nn.Module):
    """The children, parameters, buffers and plain tensors of `root` under their own names, and `fx_graph`, which
    calls them.

    `torch.fx.GraphModule` would drop every submodule that the graph does not call, and with it keys of the
    state dict, and would lose attributes in a deepcopy. This class keeps all of them; deepcopy and pickling
    work at any moment.

    The graph runs over a plain module that shares the children, parameters and buffers, because a user may call
    them what he likes: `layers`, say, or `run`. Whatever the program itself keeps is out of their way as well.
    """

    fx_graph: fx.Graph

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        for kind in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[kind] = copy.copy(root.__dict__[kind])
        constants = {name: value for name, value in root.__dict__.items() if isinstance(value, Tensor)}
        tree = nn.Module()
        for kind in ("_parameters", "_buffers", "_modules"):
            tree.__dict__[kind] = self.__dict__[kind]
        for holder in (self, tree):
            holder.__dict__.update(constants)  # tensors that are no buffers
        self.training = root.training
        self.keep(fx_graph=graph, _tree=tree)
        self._function: Callable[..., Any]
        self.compile_graph()

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Executes the graph."""
        return self._function(self.tree, *args, **kwargs)

    @property
    def tree(self) -> nn.Module:
        """The children, parameters and buffers without the program."""
        return self.__dict__["_tree"]

    @property
    def argument_names(self) -> list[str]:
        """The names of the arguments that the graph takes, in order."""
        return [str(node.target) for node in self.fx_graph.nodes if node.op == "placeholder"]

    @property
    def argument_defaults(self) -> dict[str, Any]:
        """The defaults of those arguments that have one."""
        inputs = (node for node in self.fx_graph.nodes if node.op == "placeholder")
        return {str(node.target): node.args[0] for node in inputs if node.args}

    def keep(self, **values: Any) -> None:
        """Sets attributes, whatever the user's children are called."""
        self.__dict__.update(values)

    def get_submodule(self, target: str) -> nn.Module:
        """The user's, or edgeq's, module at a path; the program itself at the empty one."""
        return self.tree.get_submodule(target) if target else self

    def show_face_of(self, module: nn.Module) -> None:
        """Lets attributes and methods of `module`, whose children this program has, be reached here too: the code
        around a submodule may ask it for more than its forward.
        """
        face = shell(module)
        for kind in SHARED:
            face.__dict__[kind] = self.__dict__[kind]
        self.keep(_face=face)

    @property
    def face(self) -> nn.Module | None:
        """The object of the user's class that `show_face_of` made."""
        return self.__dict__.get("_face")

    def __getattr__(self, name: str) -> Any:
        return attribute_of(self, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run_in_user_layout(*args, **kwargs)

    def run_in_user_layout(self, *args: Any, **kwargs: Any) -> Any:
        """Executes the graph; results whose channels came to lie last are handed out in the usual order."""
        return pytree.tree_map_only(Tensor, Tensor.contiguous, self.run(*args, **kwargs))

    def compile_graph(self) -> None:
        """Makes the graph's Python code the one that `run` calls; after any change of the graph."""
        self._link_readers()
        code = self.fx_graph.python_code(root_module="self")
        name = f"<edgeq program {next(_numbers)}>"
        linecache.cache[name] = (len(code.src), None, code.src.splitlines(True), name)  # for tracebacks
        weakref.finalize(self, linecache.cache.pop, name, None)
        namespace = dict(code.globals)
        exec(compile(code.src, name, "exec"), namespace)
        self._function = namespace["forward"]

    def _link_readers(self) -> None:
        """Tells each layer who reads its output, where only layers do."""
        for node in self.fx_graph.nodes:
            layer = module_of(node, self.tree)
            if isinstance(layer, HandsOver):
                readers = [module_of(user, self.tree) for user in node.users]
                layer.readers = readers if all(isinstance(reader, HandsOver) for reader in readers) else []

    @property
    def code(self) -> str:
        """The Python source of the graph."""
        return self.fx_graph.python_code(root_module="self").src

    def __getstate__(self) -> dict[str, Any]:
        """The compiled function is left behind: it is made again from the graph."""
        return {**self.__dict__, "_function": None, "fx_graph": GraphState(self.fx_graph)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "fx_graph": state["fx_graph"].graph})
        self.compile_graph()  # not when it is first needed, which may be inside of torch.compile


class GraphState:
    """A graph that pickles. Functions are kept by the name that they are imported under, since some of those in
    torch.nn.functional cannot be pickled themselves.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph

    def __getstate__(self) -> list[tuple[Any, ...]]:
        def plain(value: Any) -> Any:
            return fx.node.map_aggregate(value, reference)

        return [(n.name, n.op, plain(n.target), plain(n.args), plain(n.kwargs)) for n in self.graph.nodes]

    def __setstate__(self, rows: list[tuple[Any, ...]]) -> None:
        self.graph = fx.Graph()
        nodes: dict[str, fx.Node] = {}
        for name, op, target, args, kwargs in rows:
            target, args, kwargs = (
                fx.node.map_aggregate(value, lambda item: item.resolve(nodes) if isinstance(item, Reference) else item)
                for value in (target, args, kwargs)
            )
            nodes[name] = self.graph.create_node(op, target, args, kwargs, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphState:
        return GraphState(copy.deepcopy(self.graph, memo))


def reference(item: Any) -> Any:
    """What stands for an item of a graph in a pickle: a reference for nodes and functions, else the item."""
    return Reference(item) if callable(item) or isinstance(item, fx.Node) else item


class Reference:
    """A node or a function inside of a pickled graph."""

    def __init__(self, item: Any) -> None:
        if isinstance(item, fx.Node):
            self.kind, self.value = "node", item.name
        elif isinstance(item, torch._ops.OpOverload):
            self.kind, self.value = "operator", str(item)
        else:
            module, name = getattr(item, "__module__", None), getattr(item, "__name__", "")
            found = getattr(importlib.import_module(module), name, None) if module else None
            self.kind, self.value = ("name", f"{module}:{name}") if found is item else ("pickle", item)

    def resolve(self, nodes: dict[str, fx.Node]) -> Any:
        """The item again; `nodes` are those of the new graph so far."""
        if self.kind == "node":
            return nodes[self.value]
        if self.kind == "operator":
            namespace, operator, overload = self.value.split(".")
            return getattr(getattr(getattr(torch.ops, namespace), operator), overload)
        if self.kind == "name":
            module, name = self.value.split(":")
            return getattr(importlib.import_module(module), name)
        return self.value
