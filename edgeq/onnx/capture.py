"""PyTorch's exporters behind one function: a converted network as an onnx-ir model, its tensors known by name."""

from __future__ import annotations

import copy
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from edgeq.errors import ExportError
from edgeq.graph.convert import ConvertedModule
from edgeq.graph.growing_tree import RESERVED
from edgeq.graph.program import Program
from edgeq.graph.results import has_names, opened, tensors_in
from edgeq.graph.rewrite import drop_unread
from edgeq.onnx.recurrent import write_recurrent
from edgeq.onnx.specialize import doubled, specialize

if TYPE_CHECKING:
    import onnx_ir

OLDEST_OPSET, NEWEST_OPSET = 13, 21
BATCH = "batch"  # what a file calls the size that is left open
TORCHSCRIPT_UP_TO = 17


@dataclass
class Capture:
    """An onnx-ir model whose last outputs are the integer tensors of the network, in the order of `tensors`."""

    model: onnx_ir.Model
    tensors: tuple[str, ...]
    names: dict[str, str]  # of each tensor: its name in the file
    interface: list[str]  # the names of the inputs, and then of the outputs
    parameters: set[str]  # the names of the network's own tensors
    merged: dict[str, str] = field(default_factory=dict)  # tensors that an exporter found to be another one's twins


def capture(
    network: ConvertedModule,
    inputs: tuple[Any, ...],
    opset: int,
    dynamic_batch: bool,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> Capture:
    """Reads `network` with the exporter that writes `opset`. The names default to those of the arguments of the
    model's forward, and to `output` or the keys of a dict that it returns.

    Raises ExportError for an opset out of range, a number of names that does not fit, or an operation that the
    exporter does not know.
    """
    if type(opset) is not int or not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ExportError(
            f"opset_version is {opset!r}; edgeq writes {OLDEST_OPSET} to {NEWEST_OPSET}: below {OLDEST_OPSET} "
            "QuantizeLinear has no axis, so that scales per channel cannot be written."
        )
    _require_number(network, inputs)
    program = copy.deepcopy(network).cpu()
    inputs = pytree.tree_map(lambda x: x.detach().cpu() if isinstance(x, Tensor) else x, inputs)
    specialize(program, inputs, dynamic_batch)
    with torch.no_grad():
        example = program(*inputs)
        of_twice = program(*doubled(inputs)) if dynamic_batch else None
    present = {node.name for node in program.fx_graph.nodes}
    tensors = tuple(name for name in network.tensors if name in present)
    inputs_named = _names(input_names, _argument_names(program, inputs), "input_names")
    results = [f"output_{name}" if name in inputs_named else name for name in _result_names(example)]
    outputs_named = _names(output_names, results, "output_names")
    _require_distinct([*inputs_named, *outputs_named])
    write_recurrent(program)
    inputs = _take_tensors_only(program, inputs)
    _return_tensors_too(program, tensors)
    exporter = _torchscript if opset <= TORCHSCRIPT_UP_TO else _dynamo
    names = [*outputs_named, *(f"{name}__codes" for name in tensors)]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            model = exporter(program, inputs, opset, dynamic_batch, inputs_named, names)
        except Exception as error:  # of many kinds, those of the exporter: the network itself has just run
            cause: BaseException = error
            while cause.__cause__ is not None and not isinstance(cause, ExportError):
                cause = cause.__cause__  # the outer ones only say in which step it was
            if isinstance(cause, ExportError):
                raise cause from error
            raise ExportError(
                f"PyTorch's exporter cannot write the network at opset {opset}: {str(cause).splitlines()[0]}\n"
                f"Opsets up to {TORCHSCRIPT_UP_TO} and those above are written by different exporters, which know "
                "different operations: try another opset_version, or write the operation otherwise."
            ) from error
    if dynamic_batch and exporter is _torchscript:
        batch = next(tensor.shape[0] for tensor in inputs if tensor.dim())
        _open_batch(model, _open_shapes(example, of_twice, batch))
    parameters = {name for name, _ in (*program.named_parameters(), *program.named_buffers())}
    return Capture(model, tensors, tensor_names(network), [*inputs_named, *outputs_named], parameters)


def tensor_names(network: ConvertedModule) -> dict[str, str]:
    """The name in a file of each integer tensor: the path of the layer that gives it, or the operation's name."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for node in network.fx_graph.nodes:
        if node.name in network.operations:
            path = str(node.target) if node.op == "call_module" else node.name
            for part in ("tensors", "movers", "layers"):
                path = path.replace(f"{RESERVED}.{part}.", "")  # of this network, or of one inside of it
            names[node.name] = path if path not in taken else f"{path}_{node.name}"
            taken.add(names[node.name])
    return names


def _require_number(network: ConvertedModule, inputs: tuple[Any, ...]) -> None:
    """Raises ExportError for fewer inputs than the model needs, or more than it takes."""
    placeholders = [node for node in network.fx_graph.nodes if node.op == "placeholder"]
    needed = sum(not node.args for node in placeholders)  # those without a default
    if not needed <= len(inputs) <= len(placeholders):
        names = ", ".join(str(node.target) for node in placeholders)
        raise ExportError(
            f"The model takes {len(placeholders)} inputs ({names}), got {len(inputs)}. Give one tensor, or a tuple "
            "of all of them."
        )


def _argument_names(program: Program, inputs: tuple[Any, ...]) -> list[str]:
    """The name of each tensor among the inputs; those inside of a container get its name and their key."""
    placeholders = [str(node.target) for node in program.fx_graph.nodes if node.op == "placeholder"]
    names = []
    for name, value in zip(placeholders, inputs, strict=False):
        names += ["_".join([name, *path]) for path, _ in tensors_in(value)]
    return names


def _result_names(example: Any) -> list[str]:
    names = ["_".join(path) for path, _ in tensors_in(example)]
    if has_names(example):
        return [f"output_{name}" if name[:1].isdigit() else name for name in names]  # exporters want a letter first
    return [f"output_{name}" if name else "output" for name in names]


def _names(given: Sequence[str] | None, default: list[str], what: str) -> list[str]:
    if given is None:
        return default
    if isinstance(given, str):
        raise ExportError(f"{what} is {given!r}; give a list of names, one for each of {default}.")
    if len(given) != len(default):
        raise ExportError(f"{what} has {len(given)} names, the model has {len(default)} such tensors: {default}.")
    return list(given)


def _require_distinct(names: list[str]) -> None:
    """Raises ExportError for inputs and outputs that a file cannot tell apart."""
    wrong = sorted(name for name, count in Counter(names).items() if not name or count > 1)
    if wrong:
        raise ExportError(
            f"Inputs and outputs are called {names}: {wrong} must each be one tensor's own, and not empty."
        )


def _take_tensors_only(program: Program, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Gives every tensor inside of a dict, list or tuple an input of its own, and returns the inputs to match:
    exporters take a dict that comes last for keyword arguments. What is no tensor is none of the file either.
    """
    graph = program.fx_graph
    flat: list[Any] = []
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for placeholder, value in zip(placeholders, inputs, strict=False):
        if isinstance(value, Tensor):
            flat.append(value)
            continue

        def own_input(leaf: Any, before: fx.Node = placeholder) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            flat.append(leaf)
            with graph.inserting_before(before):
                return graph.placeholder(f"{before.name}_item_{len(flat)}")

        container = pytree.tree_map(own_input, value)
        for user in list(placeholder.users):
            user.args, user.kwargs = (
                fx.node.map_arg(given, lambda node: container if node is placeholder else node)  # noqa: B023
                for given in (user.args, user.kwargs)
            )
        graph.erase_node(placeholder)
    program.compile_graph()
    return tuple(flat)


def _return_tensors_too(program: Program, tensors: tuple[str, ...]) -> None:
    """Adds the integer tensors to what the graph returns, flat, so that they can be told in the file."""
    graph = program.fx_graph
    output = next(node for node in graph.nodes if node.op == "output")
    by_name = {node.name: node for node in graph.nodes}
    leaves: list[fx.Node] = []
    fx.node.map_arg(opened(output.args[0]), leaves.append)
    output.args = ((*leaves, *(by_name[name] for name in tensors)),)
    drop_unread(graph)
    program.compile_graph()


def _torchscript(
    program: Program,
    inputs: tuple[Any, ...],
    opset: int,
    dynamic: bool,
    input_names: list[str],
    output_names: list[str],
) -> onnx_ir.Model:
    import onnx
    import onnx_ir as ir

    buffer: Any = io.BytesIO()
    axes = {name: {0: BATCH} for name in input_names} if dynamic else None
    torch.onnx.export(
        program,
        inputs,
        buffer,
        dynamo=False,
        opset_version=opset,
        input_names=input_names,
        output_names=output_names,
        dynamic_axes=axes,
    )
    return ir.from_proto(onnx.load_from_string(buffer.getvalue()))


def _dynamo(
    program: Program,
    inputs: tuple[Any, ...],
    opset: int,
    dynamic: bool,
    input_names: list[str],
    output_names: list[str],
) -> onnx_ir.Model:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"Opset {opset} needs the package onnxscript; opset {TORCHSCRIPT_UP_TO} does not.") from error
    shapes = None
    if dynamic:
        batch = torch.export.Dim.DYNAMIC
        shapes = pytree.tree_map(lambda x: {0: batch} if isinstance(x, Tensor) else None, inputs)
    written: Any = torch.onnx.export(
        program,
        inputs,
        dynamo=True,
        opset_version=opset,
        input_names=input_names,
        output_names=output_names,
        dynamic_shapes=None if shapes is None else (shapes,),
        external_data=False,
        verbose=False,
    )
    _name_batch(written.model)
    return written.model


def _open_shapes(result: Any, of_twice: Any, batch: int) -> list[list[int | str | None]]:
    """The shapes of the tensors that a network returns, from its results for a batch of that size and for twice as
    many: a size that is the batch's is called so, and another one that changes has no name.
    """

    def opened_size(one: int, two: int) -> int | str | None:
        return one if one == two else BATCH if (one, two) == (batch, 2 * batch) else None

    pairs = zip(tensors_in(result), tensors_in(of_twice), strict=True)
    return [[opened_size(*sizes) for sizes in zip(x.shape, y.shape, strict=True)] for (_, x), (_, y) in pairs]


def _open_batch(model: onnx_ir.Model, shapes: list[list[int | str | None]]) -> None:
    """Takes away the shapes that the exporter noted, since some are the example's, and gives the outputs theirs."""
    import onnx_ir as ir

    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    for value, shape in zip(model.graph.outputs, shapes, strict=False):  # behind them are the integer tensors
        value.shape = ir.Shape(shape)


def _name_batch(model: onnx_ir.Model) -> None:
    """Calls the first dimension of the inputs "batch" wherever it occurs; the exporter gave it a number."""
    import onnx_ir as ir

    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    sizes = {str(value.shape[0]) for value in model.graph.inputs if value.shape and not value.shape.is_static(0)}
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(BATCH if str(size) in sizes else size for size in value.shape)
