"""Operations in place become ones that return a new tensor. What the network computes stays."""

from __future__ import annotations

import operator
from types import EllipsisType
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from edgeq.errors import TraceError
from edgeq.graph.aliases import Aliases
from edgeq.graph.conditions import argument
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
WHOLE = {"fill_": "value", "copy_": "src", "zero_": None}  # what writes a whole tensor, and the argument that it writes
HARMLESS = ("requires_grad_", "share_memory_")  # which write no number


def functionalize(graph: fx.Graph, root: nn.Module) -> set[str]:
    """Turns operations in place into ones that return a new tensor, and lets everything that comes later in the
    graph use that. Returns the paths of the modules that work in place, which now must not.

    A quantized tensor may have several readers; one that wrote into it would change it for all of them. What is
    written into a part of a tensor is put into the whole. Raises TraceError where the network reads what was written
    through any other view made before, or writes with an operation that has no form which returns a new tensor.
    """
    memory = Aliases(graph, root)
    sizes: set[fx.Node] = set()  # numbers that shapes gave: ``n += 1`` changes no other name of one
    modules: set[str] = set()
    for node in list(graph.nodes):
        if _becomes_functional(node, root, modules):
            written = node.args[0] if node.args else node.kwargs.get("input")
            if isinstance(written, fx.Node) and written not in sizes:
                _let_read(memory, node, written, sizes)
        _require_unread(memory, node)
        if _is_size(node, root, sizes):
            sizes.add(node)
        memory.add(node)
    return modules


def _let_read(memory: Aliases, writer: fx.Node, written: fx.Node, sizes: set[fx.Node]) -> fx.Node:
    """Lets everything behind a node that wrote into `written` read what it returns: the node that stands for `written`
    from then on, which is given back.
    """
    stale = memory.stale_reader(writer, written)
    part = None if stale is None else _part_of(written, sizes)
    if stale is not None and part is None:
        raise TraceError(
            f"{writer.name!r} ({writer.target}, in {_scope(writer)}) writes in place into memory that {stale.name!r} "
            f"({stale.target}) reads later through another view of it. A quantized tensor is never written to: write "
            "this place without the operation in place."
        )
    for user in list(written.users):
        if memory.position[user] > memory.position[writer]:
            user.replace_input_with(written, writer)
    return writer if part is None else _put_back(memory, writer, written, part, sizes)


def _put_back(
    memory: Aliases, writer: fx.Node, view: fx.Node, part: tuple[fx.Node, Any], sizes: set[fx.Node]
) -> fx.Node:
    """Puts what was written into a `view` of a `part` into the whole, and lets all that comes later look at that."""
    whole, index = part
    value = writer.args[2] if writer.target is put and writer.args[1] is Ellipsis else writer
    readers = list(writer.users)
    with writer.graph.inserting_after(writer):
        changed = writer.graph.call_function(put, (whole, index, value))
    _note(memory, changed, writer)
    whole = _let_read(memory, changed, whole, sizes)
    with writer.graph.inserting_after(whole):
        again = writer.graph.node_copy(view, lambda node: whole if node is view.args[0] else node)
    _note(memory, again, writer)
    for reader in readers:
        reader.replace_input_with(writer, again)
    return again


def _note(memory: Aliases, made: fx.Node, writer: fx.Node) -> None:
    """Takes in a node that was made for a writer, as if it was of the same moment."""
    made.meta[SCOPE] = writer.meta.get(SCOPE, "")
    memory.position[made] = memory.position[writer]
    memory.add(made)


def _part_of(view: fx.Node, sizes: set[fx.Node]) -> tuple[fx.Node, Any] | None:
    """The tensor that a view shows a part of, and the index of the part; None for any other view. A tuple of indices
    is that of a tensor for sure, where a number alone may pick an item of a tuple.
    """
    if view.target is operator.getitem and isinstance(view.args[1], tuple):
        index: Any = view.args[1]
    elif _name(view) == "select" and len(view.args) == 3 and isinstance(view.args[1], int):
        dimension, place = view.args[1], view.args[2]
        every = slice(None)
        index = (*[every] * dimension, place) if dimension >= 0 else (..., place, *[every] * (-dimension - 1))
    else:
        return None
    numbers: list[fx.Node] = []
    fx.node.map_arg(index, numbers.append)
    is_plain = all(item is None or isinstance(item, int | slice | fx.Node | EllipsisType) for item in index)
    whole: Any = view.args[0]
    return (whole, index) if is_plain and sizes.issuperset(numbers) else None


def _scope(node: fx.Node) -> str:
    return f"submodule {node.meta[SCOPE]!r}" if node.meta.get(SCOPE) else "the model itself"


def _name(node: Any) -> str:
    return node.target if node.op == "call_method" else str(getattr(node.target, "__name__", ""))


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
    """Whether a node works in place. Raises TraceError if nothing of PyTorch's does the same out of place."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(node.target), "inplace", False))
    name = _name(node)
    if node.target in IN_PLACE_FUNCTIONS or node.target is operator.setitem or node.kwargs.get("inplace") is True:
        return node.op == "call_function"
    if node.op not in ("call_function", "call_method") or not name.endswith("_") or name.endswith("__"):
        return False
    if name in HARMLESS or (node.op == "call_function" and getattr(torch, name, None) is not node.target):
        return False
    if name not in WHOLE and not hasattr(torch.Tensor if node.op == "call_method" else torch, name[:-1]):
        raise TraceError(
            f"{name!r} ({node.name!r}, in {_scope(node)}) writes in place, and has no form that returns a new tensor. "
            "A quantized tensor is never written to: write this place without the operation in place."
        )
    return True


def _becomes_functional(node: Any, root: nn.Module, modules: set[str]) -> bool:
    """Replaces the node's target by its twin that does not write; false when it never wrote."""
    if not _writes(node, root):
        return False
    name = _name(node)
    if node.op == "call_module":
        modules.add(node.target)
    elif node.target in IN_PLACE_FUNCTIONS:
        node.target = IN_PLACE_FUNCTIONS[node.target]
    elif node.target is operator.setitem:
        node.target = put
    elif name in WHOLE:
        value = 0 if WHOLE[name] is None else argument(node, 1, str(WHOLE[name]))
        node.op, node.target = "call_function", put
        node.args, node.kwargs = (argument(node, 0, "input"), Ellipsis, value), {}
    elif node.op == "call_method":
        node.target = name[:-1]
    elif node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
    else:
        node.target = getattr(torch, name[:-1])
    return True
