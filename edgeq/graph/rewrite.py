"""Rewrites of a traced graph before it is annotated. None changes what the network computes."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from edgeq.errors import TraceError
from edgeq.graph.aliases import Aliases
from edgeq.graph.conditions import DROPOUTS, argument
from edgeq.graph.kinds import module_of
from edgeq.graph.operators import operator_of
from edgeq.graph.put import put
from edgeq.graph.trace import SCOPE

IN_PLACE = (  # functions of torch whose twin with an underscore writes
    "abs acos acosh asin asinh atan atanh ceil celu clamp cos cosh erf erfc exp exp2 expm1 fix floor frac log log10 "
    "log1p log2 nan_to_num neg reciprocal relu round rrelu rsqrt selu sigmoid sin sinc sinh sqrt square tan tanh "
    "threshold trunc"
)
IN_PLACE_FUNCTIONS: dict[Any, Any] = {
    **{getattr(torch, f"{name}_"): getattr(torch, name) for name in IN_PLACE.split()},
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.imatmul: operator.matmul,
    functional.hardtanh_: functional.hardtanh,
    functional.leaky_relu_: functional.leaky_relu,
    functional.elu_: functional.elu,
}


def put_input_first(graph: fx.Graph) -> None:
    """Lets PyTorch's functions and modules have their data by position, ``relu(input=x)`` too: the passes that follow
    look for it there.
    """
    for node in graph.nodes:
        name = next((name for name in ("input", "tensors") if name in node.kwargs), None)
        if name is not None and not node.args and node.op in ("call_function", "call_module"):
            node.args = (node.kwargs[name],)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != name}


def functionalize(graph: fx.Graph, root: nn.Module) -> set[str]:
    """Turns operations in place into ones that return a new tensor, and lets everything that comes later in the
    graph use that. Returns the paths of the modules that work in place, which now must not.

    A quantized tensor may have several readers; one that wrote into it would change it for all of them. Raises
    TraceError where the network needs that, because it reads what was written through a view made before.
    """
    memory = Aliases(graph, root)
    sizes: set[fx.Node] = set()  # numbers that shapes gave: ``n += 1`` changes no other name of one
    modules: set[str] = set()
    for node in list(graph.nodes):
        if _becomes_functional(node, root, modules):
            written = node.args[0] if node.args else node.kwargs.get("input")
            if isinstance(written, fx.Node) and written not in sizes:
                _let_read(memory, node, written)
        _require_unread(memory, node)
        if _is_size(node, root, sizes):
            sizes.add(node)
        memory.add(node)
    return modules


def _let_read(memory: Aliases, writer: fx.Node, written: fx.Node) -> None:
    """Lets everything behind a node that wrote into `written` read what it returns."""
    stale = memory.stale_reader(writer, written)
    if stale is not None:
        raise TraceError(
            f"{writer.name!r} ({writer.target}, in submodule {writer.meta.get(SCOPE) or 'the model itself'}) writes in "
            f"place into memory that {stale.name!r} ({stale.target}) reads later through another view of it. A "
            "quantized tensor is never written to: write this place without the operation in place."
        )
    for user in list(written.users):
        if memory.position[user] > memory.position[writer]:
            user.replace_input_with(written, writer)


def _require_unread(memory: Aliases, node: fx.Node) -> None:
    """Raises TraceError where a module that is quantized by itself would write into what others read later."""
    module = module_of(node, memory.root)
    for name, given in zip(getattr(module, "argument_names", ()), node.args, strict=False):
        if name in getattr(module, "writes", ()) and isinstance(given, fx.Node):
            maker = memory.makers[given]
            shared = (user for sharer in memory.sharers[maker] for user in sharer.users)
            late = next((user for user in shared if memory.position[user] > memory.position[node]), None)
            if late is not None:
                raise TraceError(
                    f"{node.target!r} writes in place into its input {name!r}, which {late.name!r} ({late.target}) "
                    "reads later. What is quantized by itself never does: write it without the operation in place."
                )


def _is_size(node: fx.Node, root: nn.Module, sizes: set[fx.Node]) -> bool:
    """Whether a node gives a number from a shape, or makes one of such `sizes`."""
    if not node.op.startswith("call"):
        return False
    row = operator_of(node, module_of(node, root)).name
    if row in ("size", "property") or (row == "attribute" and node.args[1] in ("shape", "ndim")):
        return True
    return node.op == "call_function" and bool(node.all_input_nodes) and sizes.issuperset(node.all_input_nodes)


def written_inputs(graph: fx.Graph, root: nn.Module) -> list[str]:
    """The names of the inputs of a graph that it writes into, before `functionalize` makes that so that it does not."""
    memory, found = Aliases(graph, root), {}
    for node in graph.nodes:
        written = node.args[0] if node.args else node.kwargs.get("input")
        if _writes(node, root) and isinstance(written, fx.Node) and memory.makers[written].op == "placeholder":
            found[str(memory.makers[written].target)] = True
        memory.add(node)
    return list(found)


def _writes(node: Any, root: nn.Module) -> bool:
    """Whether a node works in place and has a twin that does not."""
    if node.op == "call_function":
        is_one = node.target in IN_PLACE_FUNCTIONS or node.target is operator.setitem
        return is_one or node.kwargs.get("inplace") is True
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__") and hasattr(torch.Tensor, name[:-1])
    return node.op == "call_module" and bool(getattr(root.get_submodule(node.target), "inplace", False))


def _becomes_functional(node: Any, root: nn.Module, modules: set[str]) -> bool:
    """Replaces the node's target by its twin that does not write; false when it never wrote."""
    if not _writes(node, root):
        return False
    if node.op == "call_module":
        modules.add(node.target)
    elif node.op == "call_method":
        node.target = node.target[:-1]
    elif node.target in IN_PLACE_FUNCTIONS:
        node.target = IN_PLACE_FUNCTIONS[node.target]
    elif node.target is operator.setitem:
        node.target = put
    else:
        node.kwargs = {**node.kwargs, "inplace": False}
    return True


def drop_unread(graph: fx.Graph) -> None:
    """Erases calls of functions and methods, and attributes, that nothing reads: they would cost time and get
    quantizers. Modules stay, since a batch norm's statistics may be all that is wanted of one. Nothing works in
    place any more.
    """
    for node in reversed(graph.nodes):
        if node.op in ("call_function", "call_method", "get_attr") and not node.users and not node.is_impure():
            graph.erase_node(node)


def reshape_views(graph: fx.Graph) -> None:
    """Turns `view` into `reshape`, which gives the same numbers for any order of memory: edgeq evaluates
    convolutions with the channels last. And `x.mT` into a transpose, and `x.data` into `x.detach()`, which exporters
    know.
    """
    for node in graph.nodes:
        if node.target is getattr and node.args[1] == "data":
            node.op, node.target, node.args = "call_method", "detach", (node.args[0],)
        if node.target is getattr and node.args[1] == "mT":
            node.op, node.target, node.args = "call_method", "transpose", (node.args[0], -2, -1)
        if node.op != "call_method" or any(isinstance(value, torch.dtype) for value in node.args):
            continue
        node.target = {"view": "reshape", "view_as": "reshape_as"}.get(str(node.target), node.target)


def drop_constant_dropouts(graph: fx.Graph, in_training: Callable[[], fx.Graph]) -> None:
    """Takes out the dropouts that the program never lets drop anything, ``training=False``. In `graph`, traced in
    evaluation mode, those that follow the mode look the same; `in_training` traces the model in training mode, where
    the two differ. It is called only if there are any.
    """
    calls = _dropouts(graph)
    if not any(_training(node) is False for nodes in calls.values() for node in nodes):
        return
    try:
        with torch.random.fork_rng(devices=()):
            others = _dropouts(in_training())
    except TraceError:
        return
    for place, nodes in calls.items():
        pairs = zip(nodes, others[place], strict=True) if len(nodes) == len(others[place]) else ()
        for node, other in pairs:
            if _training(node) is _training(other) is False:
                node.replace_all_uses_with(argument(node, 0, "input"))
                graph.erase_node(node)
            elif argument(node, 1, "p", 0.5) != argument(other, 1, "p", 0.5):
                node.args, node.kwargs = (node.args[0], argument(other, 1, "p", 0.5), False), {}


def _dropouts(graph: fx.Graph) -> dict[Any, list[fx.Node]]:
    """The calls of functional dropouts by what they call and where."""
    found: dict[Any, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_function" and node.target in DROPOUTS:
            found[node.target, node.meta.get(SCOPE)].append(node)
    return found


def _training(dropout: fx.Node) -> Any:
    return argument(dropout, 2, "training", True)


def dropout_modules(graph: fx.Graph) -> dict[str, nn.Module]:
    """Turns calls of `functional.dropout` and its like that follow the mode of the model into modules, so that they
    go on following it. The graph was traced in evaluation mode, so these are the ones with ``training=False``; those
    that are never to drop anything are gone.
    """
    modules: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in DROPOUTS:
            continue
        values = dict(zip(("input", "p", "training", "inplace"), node.args, strict=False)) | dict(node.kwargs)
        if values.get("training", True) is False:
            modules[node.name] = DROPOUTS[node.target](values.get("p", 0.5))
            node.op, node.target = "call_module", f"quantization.dropouts.{node.name}"
            node.args, node.kwargs = (values["input"],), {}
    return modules
