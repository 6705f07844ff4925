"""Sizes that a graph computes from its inputs, replaced by numbers where they do not depend on the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from edgeq.errors import ExportError
from edgeq.graph.arguments import describe
from edgeq.graph.conditions import argument
from edgeq.graph.interpreter import Interpreter
from edgeq.graph.movers import Method
from edgeq.graph.program import Program
from edgeq.modules.codes import OnCodes
from edgeq.onnx.uneven_pool import write_out_uneven_pools

RESHAPES = ("reshape", "view")


class _Recorder(Interpreter):
    """Runs a program's graph and keeps what each node gives."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.tree, garbage_collect_values=False, graph=program.fx_graph)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


@torch.no_grad()
def specialize(program: Program, inputs: tuple[Any, ...], dynamic_batch: bool) -> None:
    """Replaces integers in the arguments of the graph by their values for `inputs`, in place. With
    `dynamic_batch` those that change with the first dimension of the inputs stay, and become -1 where an
    operation can find them out by itself, so that the file needs no arithmetic on shapes.

    Raises ExportError for inputs, or with `dynamic_batch` a batch size, that the model cannot take.
    """
    try:
        values = _run(program, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise ExportError(
            f"The model does not run on the example inputs ({describe(inputs)}): {error}\n"
            "Give the arguments of the model's forward: one tensor, or a tuple of all of them."
        ) from error
    others = values
    if dynamic_batch:
        try:
            others = _run(program, doubled(inputs))
        except RuntimeError as error:
            raise ExportError(
                "The model cannot take a batch of another size, so it cannot be exported with dynamic_batch=True: "
                f"{error}"
            ) from error
    sizes: dict[fx.Node, Any] = {node: value for node, value in values.items() if _is_size(value)}
    fixed = {node: value for node, value in sizes.items() if value == others[node]}
    for node in list(program.fx_graph.nodes):
        known = sizes if node.op == "output" else fixed  # a file returns no sizes
        node.args, node.kwargs = (
            fx.node.map_arg(item, lambda n: known.get(n, n))  # noqa: B023
            for item in (node.args, node.kwargs)
        )
        if node.op.startswith("call") and node not in fixed:
            _fix_sizes(node, program, values[node], others[node])
    write_out_uneven_pools(program, values)
    for node in reversed(list(program.fx_graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            program.fx_graph.erase_node(node)
    program.compile_graph()


def _run(program: Program, inputs: tuple[Any, ...]) -> dict[fx.Node, Any]:
    recorder = _Recorder(program)
    recorder.run(*inputs)
    return recorder.values


def doubled(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs with each batch twice."""
    return pytree.tree_map(lambda x: torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() else x, inputs)


def _is_size(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, tuple) and bool(value) and all(type(v) is int for v in value))


def _fix_sizes(node: Any, program: Program, value: Any, other: Any) -> None:
    """Writes the sizes that a reshape gives as numbers; the one that changes with the batch it works out itself. Of a
    chunk, the sizes of its parts.
    """
    target = node.target
    mover = program.get_submodule(str(target)) if node.op == "call_module" else None
    if isinstance(mover, OnCodes):
        target = getattr(mover.on_reals, "name", getattr(mover.on_reals, "function", type(mover.on_reals)))
    name = str(getattr(target, "__name__", target)).lower()
    if name == "chunk":
        _fix_chunk(node, mover, value, other)
        return
    is_flatten = name == "flatten" and isinstance(mover, OnCodes)
    if not is_flatten and (name not in RESHAPES or any(isinstance(arg, torch.dtype) for arg in node.args)):
        return
    shape = tuple(size if size == same else -1 for size, same in zip(value.shape, other.shape, strict=True))
    if shape.count(-1) > 1:
        return
    if isinstance(mover, OnCodes) and is_flatten:
        mover.do(Method("reshape"))
    node.args, node.kwargs = (node.args[0], shape), {}


def _fix_chunk(node: Any, mover: nn.Module | None, value: Any, other: Any) -> None:
    """Writes a chunk as a split, which needs no arithmetic on shapes, unless it is the batch that is cut."""
    dim = argument(node, 2, "dim", 0)
    sizes = [part.shape[dim] for part in value]
    if sizes != [part.shape[dim] for part in other]:
        return
    if isinstance(mover, OnCodes):
        mover.do(Method("split"))
    elif node.op != "call_module":
        node.target = "split" if node.op == "call_method" else torch.split
    node.args, node.kwargs = (argument(node, 0, "input"), sizes, dim), {}
