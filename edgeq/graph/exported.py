"""Capture through torch.export, for what symbolic tracing cannot follow: a forward that looks at shapes.

torch.export runs a model in one mode and records operators of ATen over flat inputs. Here the recording becomes a
graph over the user's own modules again: the nodes that a leaf module, such as a batch norm or a dropout, has left
are one call of that module, which goes on following `train()` and `eval()`; all others are the functions that a
user calls. Sizes stay open as far as the model lets them, so that batch and image size may change.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import operator
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from edgeq.errors import TraceError
from edgeq.graph.arguments import bound, call_arguments
from edgeq.graph.aten import raised
from edgeq.graph.checks import require_value
from edgeq.graph.decompose import Replacing, decomposition_of
from edgeq.graph.interpreter import Interpreter
from edgeq.graph.kinds import FLOATING
from edgeq.graph.recording import record
from edgeq.graph.results import tensors_in
from edgeq.graph.sizes import check_sizes, rounded_quotient
from edgeq.graph.trace import SCOPE, Tracer
from edgeq.graph.undisturbed import undisturbed

TOLERANCE = 1e-4  # of the greatest output: what another order of float operations comes to, and no more
LOOPS = ("aten.lstm.", "aten.gru.", "aten.rnn_")
CALL_NUMBER = re.compile(r"@\d+$")  # which torch.export appends to the path of a module that is called again


@torch.no_grad()
def trace_exported(model: nn.Module, leaves: Iterable[str | type[nn.Module]], example_inputs: Any) -> fx.Graph:
    """The graph of `model` in evaluation mode, taken where `example_inputs` lead. Tensors that the model makes are
    left in it as attributes.

    Raises TraceError when torch.export cannot follow either, or when its graph computes something else.
    """
    given = bound(model, example_inputs)
    try:
        with undisturbed(model, training=False):
            exported = record(model, given)
            graph = _Raised(model, exported, leaves, given).graph
            _compare(model, graph, given)
            return graph
    except TraceError:
        raise
    except Exception as error:  # of whatever function of PyTorch's does not take what was recorded
        raise TraceError(f"What torch.export recorded cannot be written as a graph: {error}") from error


class _Appending(Replacing, fx.proxy.GraphAppendingTracer):
    """Records calls behind one another, over the modules and parameters of `root`."""

    root: nn.Module


class _Raised:
    """The recording of torch.export as `graph`, over the modules of `model`."""

    def __init__(
        self,
        model: nn.Module,
        exported: Any,
        leaves: Iterable[str | type[nn.Module]],
        given: inspect.BoundArguments,
    ) -> None:
        self.model, self.exported = model, exported
        self.graph = fx.Graph()
        self.tracer = Tracer(leaves)
        self.appending = _Appending(self.graph)
        self.appending.root = model
        self.values: dict[fx.Node, Any] = {}
        self._inputs(given)
        self._nodes(exported.graph)
        self._output()

    # ---- inputs and outputs

    def _inputs(self, given: inspect.BoundArguments) -> None:
        """Placeholders for the arguments of the forward, and checks of what is fixed about them; parameters, buffers
        and constants as attributes.
        """

        def placeholder(name: str, default: tuple[Any, ...]) -> fx.Proxy:
            return self._proxy(self.graph.create_node("placeholder", name, default, {}))

        kinds = torch.export.graph_signature.InputKind
        found = call_arguments(self.model, given, placeholder, lambda item: not isinstance(item, Tensor))
        placeholders = {node.name: node for node in self.exported.graph.nodes if node.op == "placeholder"}
        rest = iter(found.leaves)
        recorded: list[Any] = []
        for spec in self.exported.graph_signature.input_specs:
            node = placeholders[spec.arg.name]
            if spec.kind is kinds.USER_INPUT:
                _, proxy, example = next(rest)
                self.values[node] = proxy if isinstance(example, Tensor) else example
                _note_type(proxy, node)
                recorded.append(node.meta.get("val"))
            elif spec.kind is kinds.CONSTANT_TENSOR:
                self.values[node] = self._constant(spec.target, self.exported.constants[spec.target])
            else:
                self.values[node] = _Attribute(spec.target)
        for name, proxy, value in found.fixed:
            self.appending.create_proxy("call_function", require_value, (proxy, name, value), {})
        check_sizes(self.exported, found.leaves, recorded)
        for node in self.graph.nodes:
            node.meta.setdefault(SCOPE, "")

    def _constant(self, name: str, value: Tensor) -> _Attribute:
        """A tensor that the model made, as an attribute of it."""
        name = f"exported_{name.replace('.', '_')}"
        setattr(self.model, name, value)
        return _Attribute(name)

    def _output(self) -> None:
        (output,) = (node for node in self.exported.graph.nodes if node.op == "output")
        flat = [self._value(value) for value in output.args[0]]
        result = pytree.tree_unflatten(flat, self.exported.call_spec.out_spec)
        self.graph.output(self._argument(self._structure(result)))

    def _structure(self, value: Any) -> Any:
        """`value` with objects that hold tensors, and named tuples, made by a call of their class, as tracing does."""
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            held = {key: self._argument(self._structure(item)) for key, item in fields.items() if item is not None}
            return self._proxy(self.graph.call_function(type(value), (), held))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            items = tuple(self._argument(self._structure(item)) for item in value)
            return self._proxy(self.graph.call_function(type(value), items))
        if isinstance(value, dict):
            return {key: self._structure(item) for key, item in value.items()}
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            return type(value)(self._structure(item) for item in value)
        return value

    # ---- nodes

    def _proxy(self, node: fx.Node) -> fx.Proxy:
        node.meta.setdefault(SCOPE, "")
        return fx.Proxy(node, self.appending)

    def _argument(self, value: Any) -> Any:
        return pytree.tree_map(lambda item: item.node if isinstance(item, fx.Proxy) else item, value)

    def _value(self, value: Any) -> Any:
        """What stands for a value of the recording; an attribute is looked up once it is needed."""
        if not isinstance(value, fx.Node):
            return value
        found = self.values[value]
        if isinstance(found, _Attribute):
            found = self.values[value] = self._proxy(self.graph.get_attr(found.path))
        return found

    def _nodes(self, recorded: fx.Graph) -> None:
        nodes = [node for node in recorded.nodes if node.op == "call_function"]
        for key, members in itertools.groupby(nodes, self._call_of):
            group = list(members)
            if key is None or not self._module_call(key[1], group):
                for node in group:
                    self._node(node)

    def _region(self, node: fx.Node) -> None:
        """What stands under `torch.no_grad()` or `torch.autocast()` is recorded as a graph of its own; here it is a
        part of the one.
        """
        at = next(
            index for index, value in enumerate(node.args) if isinstance(value, fx.Node) and value.op == "get_attr"
        )
        target: Any = node.args[at]
        inner = getattr(self.exported.graph_module, str(target.target)).graph
        placeholders = [each for each in inner.nodes if each.op == "placeholder"]
        for placeholder, value in zip(placeholders, node.args[at + 1 :], strict=True):
            self.values[placeholder] = self.values[value] if isinstance(value, fx.Node) else value
        self._nodes(inner)
        (output,) = (each for each in inner.nodes if each.op == "output")
        self.values[node] = fx.node.map_aggregate(output.args[0], self._value)

    def _node(self, node: fx.Node) -> None:
        if isinstance(node.target, torch._ops.HigherOrderOperator) and node.target.name().startswith("wrap_with"):
            self._region(node)
            return
        last = next(iter(reversed(self.graph.nodes)), None)
        args, kwargs = (fx.node.map_aggregate(item, self._value) for item in (node.args, node.kwargs))
        plain: Any = pytree.tree_map(lambda item: item, (tuple(args), dict(kwargs)))  # type: ignore[arg-type]
        args, kwargs = plain
        whole = rounded_quotient(node)
        if whole is not None:
            divide, *operands = whole
            value = divide(*(self._value(operand) for operand in operands))
        else:
            value = raised(node.target, args, kwargs)
        self.values[node] = self._constant(node.name, value) if isinstance(value, Tensor) else value
        _note_type(value, node)
        path = self._path(node)
        for made in itertools.takewhile(lambda made: made is not last, reversed(self.graph.nodes)):
            made.meta[SCOPE] = path

    def _path(self, node: fx.Node) -> str:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = CALL_NUMBER.sub("", stack[-1][0]) if stack else ""
        return "" if path.startswith("_empty") else path

    def _call_of(self, node: fx.Node) -> tuple[str, str] | None:
        """The call of a leaf module that a node was recorded in: a key of its own, and the path of the module."""
        for key, (name, _) in (node.meta.get("nn_module_stack") or {}).items():
            path = CALL_NUMBER.sub("", name)
            if not path or path.startswith("_empty"):
                continue
            module = self.model.get_submodule(path)
            if self.tracer.is_leaf_module(module, path) and decomposition_of(module) is None:
                return key, path
        return None

    def _module_call(self, path: str, group: list[fx.Node]) -> bool:
        """Records a group as one call of the module at `path`; false when it is more than a function of a tensor."""
        inside = set(group)
        outer: list[fx.Node] = []
        for node in group:
            outer += [
                source
                for source in node.all_input_nodes
                if source not in inside and source not in outer and isinstance(source.meta.get("val"), Tensor)
            ]
        inputs = [source for source in outer if not isinstance(self.values.get(source), _Attribute)]
        inputs = [source for source in inputs if not self._is_own(source, path)]
        read = [node for node in group if any(user not in inside for user in node.users)]
        module = self.model.get_submodule(path)
        several = isinstance(module, nn.RNNBase)
        arguments = _arguments_of_loop(group, inputs) if several else inputs
        if not read or (len(read) > 1 and not several) or getattr(module, "return_indices", False):
            return False
        if arguments is None or (len(arguments) != 1 and not several):
            return False
        args = tuple(self._argument(fx.node.map_aggregate(argument, self._value)) for argument in arguments)
        call = self._proxy(self.graph.call_module(path, args))
        call.node.meta[SCOPE] = path
        for node in read:
            self.values[node] = _item_of(call, module, node)
        return True

    def _is_own(self, source: fx.Node, path: str) -> bool:
        """Whether a value is an attribute of the module at `path`, looked up before."""
        value = self.values.get(source)
        is_attribute = isinstance(value, fx.Proxy) and value.node.op == "get_attr"
        return is_attribute and str(value.node.target).startswith(f"{path}.")  # type: ignore[union-attr]


def _note_type(value: Any, node: fx.Node) -> None:
    """Notes on the node of a proxy whether it is a floating tensor, as the recording knows."""
    recorded = node.meta.get("val")
    if isinstance(value, fx.Proxy) and isinstance(recorded, Tensor):
        value.node.meta[FLOATING] = recorded.is_floating_point()


@dataclasses.dataclass
class _Attribute:
    path: str


def _arguments_of_loop(group: list[fx.Node], inputs: list[fx.Node]) -> list[Any] | None:
    """The arguments of a recurrent layer's call: its input, and its first state unless it has made that itself; None
    where either was worked on before the loop.
    """
    loop = next((node for node in group if str(node.target).startswith(LOOPS)), None)
    if loop is None or loop.args[0] not in inputs:
        return None
    x, state = loop.args[0], loop.args[1]
    states = list(state) if isinstance(state, list | tuple) else [state]
    if all(one in inputs for one in states):
        return [x, tuple(states) if len(states) > 1 else states[0]]
    return [x] if inputs == [x] else None


def _item_of(call: Any, module: nn.Module, node: fx.Node) -> Any:
    """What a node of the recording is of the result of its module's call."""
    if not isinstance(module, nn.RNNBase) or node.target is not operator.getitem:
        return call
    number: Any = node.args[1]
    if number == 0:
        return call[0]
    return call[1][number - 1] if isinstance(module, nn.LSTM) else call[1]


def _compare(model: nn.Module, graph: fx.Graph, given: inspect.BoundArguments) -> None:
    """Raises TraceError when the graph does not compute what the model does."""
    expected = [tensor for _, tensor in tensors_in(model(*given.args, **given.kwargs))]
    found = [tensor for _, tensor in tensors_in(Interpreter(model, graph=graph).run(*_placed(graph, given)))]
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        raise TraceError("The graph that torch.export gave returns tensors of other shapes than the model.")
    for ours, theirs in zip(found, expected, strict=True):
        if theirs.is_floating_point() and theirs.numel():
            difference = float((ours - theirs).abs().max())
            if not difference <= TOLERANCE * max(float(theirs.abs().max()), 1e-6):
                raise TraceError(f"The graph that torch.export gave differs from the model by up to {difference:.3g}.")


def _placed(graph: fx.Graph, given: inspect.BoundArguments) -> list[Any]:
    """The values of the placeholders of a graph, in order."""
    values = dict(given.arguments)
    for name, parameter in given.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            values.update({f"{name}_{number}": value for number, value in enumerate(values.pop(name, ()))})
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            values.update(values.pop(name, {}))
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return [values[node.target] if node.target in values else node.args[0] for node in inputs]
