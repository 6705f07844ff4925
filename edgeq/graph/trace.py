"""Capture: a user's model as a torch.fx graph over its own submodules."""

from __future__ import annotations

import dataclasses
import inspect
import operator
import sys
import traceback
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from edgeq.errors import TraceError
from edgeq.graph import attention, cells, contractions, spellings, transformer_layers  # noqa: F401 - their decompositions
from edgeq.graph.arguments import bound, call_arguments, decides
from edgeq.graph.checks import require_value
from edgeq.graph.decompose import Replacing, decomposition_of
from edgeq.graph.kinds import FLOATING
from edgeq.graph.program import Program
from edgeq.graph.sized import is_sized, transposed_to_size
from edgeq.graph.undisturbed import undisturbed
from edgeq.modules.computed import has_computed_weight
from edgeq.modules.stubs import DeQuantStub, QuantStub
from edgeq.modules.torch_class import torch_class

SCOPE = "edgeq_scope"  # key in a node's meta: path of the module whose forward made the node
NO_GRAD = "edgeq_no_grad"  # key in a node's meta, if it was made where the forward has switched gradients off


class Proxy(fx.Proxy):
    """A value of a traced graph that also records what is done to it in place: ``x[0] = y``, and ``x += y``, which
    fx would take for ``x = x + y``, so that other names of x would miss it.
    """

    def __setitem__(self, index: Any, value: Any) -> None:
        self._record(operator.setitem, index, value)

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._record(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._record(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._record(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._record(operator.itruediv, other)

    def _record(self, function: Any, *args: Any) -> fx.Proxy:
        name = function.__name__.removeprefix("i")
        return self.tracer.create_proxy("call_function", function, (self, *args), {}, name)


class Tracer(Replacing, fx.Tracer):
    """Symbolic tracing that remembers in which submodule each node was made, also when it fails."""

    def __init__(
        self, leaves: Iterable[str | type[nn.Module]] = (), given: inspect.BoundArguments | None = None
    ) -> None:
        super().__init__()
        self.leaves = tuple(leaves)
        self.given = given
        self.has_gradients = torch.is_grad_enabled()
        self.paths: list[str] = [""]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self._is_named(m, module_qualified_name) or isinstance(m, QuantStub | DeQuantStub):
            return True
        return is_whole(m)

    def _is_named(self, module: nn.Module, path: str) -> bool:
        return any(path == leaf if isinstance(leaf, str) else isinstance(module, leaf) for leaf in self.leaves)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self.path_of_module(m)
        self.paths.append(path)
        decomposition = None if self._is_named(m, path) else decomposition_of(m)
        if decomposition is not None:
            result = decomposition(m, *args, **kwargs)
        elif is_sized(m, args, kwargs):
            result = transposed_to_size(m, *args, **kwargs)
        else:
            result = super().call_module(m, forward, args, kwargs)
            if isinstance(m, Program):
                result = _structured(result, next(iter(reversed(m.fx_graph.nodes))).args[0])
        self.paths.pop()  # not in a finally: after an error the path tells where it was
        return result

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        def placeholder(name: str, default: tuple[Any, ...]) -> Any:
            proxy = self.create_proxy("placeholder", name, default, {})
            example = None if self.given is None else self.given.arguments.get(name)
            if isinstance(example, torch.Tensor):
                proxy.node.meta[FLOATING] = example.is_floating_point()
            return proxy

        found = call_arguments(self.root, self.given, placeholder, decides)
        for name, value, expected in found.fixed:
            self.create_proxy("call_function", require_value, (value, name, expected), {})
        forward = decomposition_of(self.root) or root_fn
        return lambda *values: forward(self.root, *values, **found.kwargs), found.args

    def create_arg(self, a: Any) -> Any:
        """A dataclass that is a dict too, such as what Hugging Face's models return, stays more than a dict."""
        if not (isinstance(a, dict) and dataclasses.is_dataclass(a)):
            return super().create_arg(a)
        values = {field.name: getattr(a, field.name) for field in dataclasses.fields(a)}
        held = {name: self.create_arg(value) for name, value in values.items() if value is not None}
        return self.create_node("call_function", type(a), (), held)

    def proxy(self, node: fx.Node) -> Proxy:
        return Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta = {SCOPE: self.paths[-1]}  # nobody reads the stack of modules, of which fx gives each node a copy
        if self.has_gradients and not torch.is_grad_enabled():
            node.meta[NO_GRAD] = True
        return node


def is_whole(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's, which is not traced into."""
    is_plain = torch_class(module).__module__.startswith("torch.nn") and "forward" not in vars(module)
    return is_plain and not isinstance(module, nn.Sequential)


def _structured(value: Any, output: Any) -> Any:
    """A proxy of what a network gives as the dicts, lists and tuples that its `output` has, which can be iterated."""
    if isinstance(output, dict):
        return {key: _structured(value[key], item) for key, item in output.items()}
    if isinstance(output, list | tuple) and not hasattr(output, "_fields"):
        items = [_structured(value[index], item) for index, item in enumerate(output)]
        return items if isinstance(output, list) else tuple(items)
    return value


def trace(
    model: nn.Module, leaves: Iterable[str | type[nn.Module]] = (), example_inputs: Any = None, training: bool = False
) -> fx.Graph:
    """The graph of `model` in evaluation mode, or in training mode; it is as before afterwards. What
    `example_inputs` hold are the inputs of the graph; without them, the arguments without a default.

    Raises TraceError, naming file, line and submodule, for a model that decides by the values of its tensors.
    """
    if isinstance(model, fx.GraphModule):
        return _copied(model.graph)
    _require_kept_weight(model)
    tracer = Tracer(leaves, None if example_inputs is None else bound(model, example_inputs))
    try:
        with undisturbed(model, training):
            return tracer.trace(model)
    except RecursionError as error:
        raise TraceError(
            f"{type(model).__name__} cannot be traced within Python's recursion limit of {sys.getrecursionlimit()}: "
            f"its modules lie deeper in each other ({tracer.paths[-1].count('.') + 1} levels so far), or a forward "
            "calls itself without end. Raise the limit with sys.setrecursionlimit: it takes some 10 calls a level."
        ) from error
    except Exception as error:
        raise TraceError(_explanation(error, tracer.paths[-1], model)) from error


def _copied(graph: fx.Graph) -> fx.Graph:
    """A copy, since the graph of a user's GraphModule is not ours to change."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def _require_kept_weight(model: nn.Module) -> None:
    """Raises TraceError for a single layer whose weight is computed at each call: what a graph of its forward alone
    sees is the weight of one moment.
    """
    if has_computed_weight(model) and torch_class(model).__module__.startswith("torch.nn"):
        raise TraceError(
            f"The weight of the {torch_class(model).__name__} layer is computed from other parameters at each call, "
            "which a graph of this layer alone does not see. Quantize a module around it; nn.Sequential(layer) will do."
        )


def _explanation(error: Exception, scope: str, model: nn.Module) -> str:
    inside = [f"{path.rsplit('/', depth)[0]}/" for path, depth in ((torch.__file__, 1), (__file__, 2))]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(tuple(inside)) and frame.filename[0] != "<"]
    place = f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else "unknown"
    where = f"submodule {scope!r} ({type(model.get_submodule(scope)).__name__})" if scope else type(model).__name__
    return (
        f"The model cannot be traced: {error}\n  in {where}, at {place}\n"
        "Its forward depends on the value of a tensor, or passes one to code that tracing cannot follow. Ways out: "
        "write this place without the dependence, keep the submodule whole, in float, with untraced=[name or class], "
        "or quantize the submodules around it by themselves with submodules=[name, ...]."
    )
