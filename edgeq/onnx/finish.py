"""The finishing passes: what an exporter wrote becomes the file that edgeq promises."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from edgeq.errors import ExportError
from edgeq.onnx.capture import Capture
from edgeq.onnx.graphs import Array, add_initializer, constant_of, maker, numbers_of, operand, readers, text

FOLDED = (
    "Cast",
    "Concat",
    "ConstantOfShape",
    "Gather",
    "Reshape",
    "Shape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
LINEARS = ("QuantizeLinear", "DequantizeLinear")
CODES = "/codes"  # the end of the name of every integer tensor


def finish(captured: Capture) -> ir.Model:
    """Tidies the captured model in place. Every integer tensor gets its name; the outputs that told which is
    which are taken away again.

    Each pass keeps what the file computes: constants become initializers, identities and constant arithmetic on
    shapes go, a transposed weight is stored transposed, a tensor is dequantized once.

    Raises ExportError when a quantizer was lost, or an input or output cannot have the name that it should.
    """
    model = captured.model
    common.InlinePass()(model)
    _take_away_outputs(model.graph, captured)  # before the passes that look through all outputs at each node
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    common.ShapeInferencePass()(model)
    _name_outputs(model.graph, captured.interface)
    for run in (fold_constants, transpose_weights, join_dequantizers):
        run(model.graph)
    complete_branches(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    forget_origins(model.graph)
    name_nodes(model.graph)
    name_parameters(model.graph)
    name_constants(model.graph, captured.parameters)
    common.NameFixPass()(model)
    common.TopologicalSortPass()(model)
    _require_names(model.graph, captured.interface)
    return model


def _take_away_outputs(graph: ir.Graph, captured: Capture) -> None:
    """Removes the outputs that stand for integer tensors, and names their values instead; of those that became one
    value, by the first. Raises ExportError for one that no quantizer gives: exporters write arithmetic without a word
    where they do not know an operation.
    """
    lost = []
    named: dict[ir.Value, str] = {}
    first = len(graph.outputs) - len(captured.tensors)
    values = list(graph.outputs)[first:]
    while len(graph.outputs) > first:
        graph.outputs.pop()
    for name, value in zip(captured.tensors, values, strict=True):
        while (identity := maker(value, "Identity")) is not None:
            value = operand(identity, 0)
        if value in named:
            captured.merged[captured.names[name]] = named[value]
            continue
        named[value] = captured.names[name]
        value.name = f"{captured.names[name]}{CODES}"
        node = value.producer()
        while node is not None and node.op_type in ("Clip", "Cast"):  # bounds of codes
            node = maker(operand(node, 0))
        made = node is not None and (node.op_type == "QuantizeLinear" or _picks_codes(node))
        if not made and not _are_codes(constant_of(value)):
            lost.append(captured.names[name])
    if lost:
        raise ExportError(f"The exporter has lost {len(lost)} quantizers: {', '.join(lost[:5])}.")


def _picks_codes(node: ir.Node) -> bool:
    """Whether a node looks up rows in a table of integers."""
    table = constant_of(operand(node, 0)) if node.op_type == "Gather" else None
    return _are_codes(table)


def _are_codes(numbers: Array | None) -> bool:
    """Whether these are the codes of a constant: a table, or rows that the exporter has picked from one."""
    return numbers is not None and numbers.dtype in (np.int8, np.uint8)


def _name_outputs(graph: ir.Graph, interface: list[str]) -> None:
    """Gives a second name to a value that is returned twice, which only an Identity can."""
    names = interface[-len(graph.outputs) :]
    for index, (name, value) in enumerate(zip(names, list(graph.outputs), strict=True)):
        if value in graph.outputs[:index]:
            value.name = names[graph.outputs.index(value)]
            again = ir.node("Identity", [value], name=name)
            again.outputs[0].name, again.outputs[0].type, again.outputs[0].shape = name, value.type, value.shape
            graph.append(again)
            graph.outputs[index] = again.outputs[0]


def complete_branches(graph: ir.Graph) -> None:
    """Lets each branch of an If, which may only give what its own nodes make, make again what it hands on."""
    for node in graph:
        for attribute in node.attributes.values():
            if not isinstance(attribute, ir.Attr) or attribute.type != ir.AttributeType.GRAPH:
                continue
            branch: ir.Graph = attribute.as_graph()
            for index, value in enumerate(branch.outputs):
                producer = value.producer()
                if producer is None or producer.graph is not branch:
                    again = ir.node("Identity", [value])
                    again.outputs[0].type, again.outputs[0].shape = value.type, value.shape
                    branch.append(again)
                    branch.outputs[index] = again.outputs[0]
            complete_branches(branch)


def fold_constants(graph: ir.Graph) -> None:
    """Evaluates arithmetic on shapes and the like, whose inputs are all known."""
    opset = graph.opset_imports[""]
    for node in list(graph):
        stand_in = _of_known_shape if node.op_type == "Shape" else constant_of
        known = {text(value): stand_in(value) for value in node.inputs if value is not None}
        if node.op_type not in FOLDED or any(numbers is None for numbers in known.values()):
            continue
        result: list[Array] = ReferenceEvaluator(ir.serde.serialize_node(node), opsets={"": opset}).run(None, known)  # type: ignore[arg-type, assignment]
        output = node.outputs[0]
        folded = add_initializer(graph, text(output) or node.op_type, np.asarray(result[0]))
        ir.convenience.replace_all_uses_with(output, folded)
        graph.remove(node, safe=True)


def _of_known_shape(value: ir.Value) -> Array | None:
    """Any numbers of the shape of a value, where all of its sizes are known."""
    if value.shape is None or not value.shape.is_static():
        return None
    return np.broadcast_to(np.float32(0), value.shape.numpy())


def transpose_weights(graph: ir.Graph) -> None:
    """Stores the weight of a linear layer as its product reads it: DequantizeLinear -> Transpose becomes
    DequantizeLinear of the transposed codes, its axis transposed too.
    """
    for node in list(graph):
        source = maker(operand(node, 0), "DequantizeLinear") if node.op_type == "Transpose" else None
        codes = None if source is None else constant_of(operand(source, 0))
        if source is None or codes is None or len(readers(source.outputs[0])) != 1:
            continue
        order = list(node.attributes["perm"].as_ints())
        name = f"{text(operand(source, 0))}.transposed"
        moved = add_initializer(graph, name, np.ascontiguousarray(codes.transpose(order)))
        axis = source.attributes["axis"].as_int() if "axis" in source.attributes else 1
        attributes = {"axis": order.index(axis)}
        replacement = ir.node("DequantizeLinear", [moved, *source.inputs[1:]], attributes=attributes, name=source.name)
        graph.insert_before(node, replacement)
        replacement.outputs[0].name = node.outputs[0].name
        ir.convenience.replace_all_uses_with(node.outputs[0], replacement.outputs[0])
        graph.remove([node, source], safe=True)


def join_dequantizers(graph: ir.Graph) -> None:
    """Leaves one DequantizeLinear for each integer tensor, and per-tensor ones without an axis."""
    seen: dict[tuple[ir.Value, bytes, bytes], ir.Node] = {}
    for node in list(graph):
        if node.op_type not in LINEARS:
            continue
        scale, zero_point = (numbers_of(operand(node, position)) for position in (1, 2))
        if scale.ndim == 0:
            node.attributes.pop("axis", None)
        if node.op_type == "QuantizeLinear":
            continue
        key = operand(node, 0), scale.tobytes(), zero_point.tobytes()
        kept = seen.setdefault(key, node)
        if node.outputs[0].is_graph_output():  # it has to stay
            seen[key], node, kept = node, kept, node
        if node is not kept and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], kept.outputs[0])
            graph.remove(node, safe=True)


def forget_origins(graph: ir.Graph) -> None:
    """Takes away what the newer exporter notes about each value: names and kinds of its own graph's tensors."""
    made = [value for node in graph for value in node.outputs]
    for value in (*graph.inputs, *graph.initializers.values(), *made):
        value.metadata_props.clear()


def name_nodes(graph: ir.Graph) -> None:
    """Names each node after the integer tensor that it leads to: `layer1.0.conv1/Conv`; what leads to none
    after the tensor that it comes from. Values are named after their nodes.
    """
    owner: dict[ir.Node, str] = {}
    for node in reversed(list(graph)):
        owner.setdefault(node, _owner(node, owner))
    used: dict[str, int] = {}
    outputs = set(graph.outputs)
    for node in graph:
        name = f"{owner[node]}/{node.op_type}" if owner[node] else node.op_type
        used[name] = used.get(name, 0) + 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"
        for value in node.outputs:
            if value not in outputs and not text(value).endswith(CODES):
                value.name = f"{node.name}_output"


def _owner(node: ir.Node, owner: dict[ir.Node, str]) -> str:
    name = text(node.outputs[0])
    if name.endswith(CODES):
        return name.removesuffix(CODES)
    if node.op_type == "DequantizeLinear" and text(operand(node, 0)).endswith(CODES):
        return text(operand(node, 0)).removesuffix(CODES)
    following = readers(node.outputs[0])
    return owner.get(following[0], "") if following else "output"


def name_parameters(graph: ir.Graph) -> None:
    """Gives each integer tensor scale and zero point of its own, named after it. Exporters let equal ones be
    one initializer under the name of the first, and ONNX Runtime's rewrite of signed weights cannot take that.
    """
    _part_equal_tensors(graph)
    made: dict[str, ir.Value] = {}
    for node in graph:
        if node.op_type not in LINEARS:
            continue
        tensor = text(node.outputs[0] if node.op_type == "QuantizeLinear" else operand(node, 0)).removesuffix(CODES)
        for position, suffix in ((1, "scale"), (2, "zero_point")):
            name = f"{tensor}_{suffix}"
            if name not in made:
                made[name] = add_initializer(graph, name, numbers_of(operand(node, position)))
            node.replace_input_with(position, made[name])
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
    for name, value in made.items():  # it may have been taken by what is gone by now
        if name not in graph.initializers:
            value.name = name


def _part_equal_tensors(graph: ir.Graph) -> None:
    """Gives a layer whose integers, but not whose scale, are those of another one integers of its own again."""
    scales: dict[str, list[tuple[bytes, ir.Value]]] = {}
    for node in graph:
        stored = operand(node, 0) if node.op_type == "DequantizeLinear" else None
        if stored is None or not stored.is_initializer():
            continue
        known = scales.setdefault(text(stored), [])
        scale = numbers_of(operand(node, 1)).tobytes()
        found = next((value for other, value in known if other == scale), None)
        if found is None:
            name = f"{text(stored)}_{len(known) + 1}"
            found = add_initializer(graph, name, numbers_of(stored)) if known else stored
            known.append((scale, found))
        node.replace_input_with(0, found)


def name_constants(graph: ir.Graph, parameters: set[str]) -> None:
    """Names what is neither a parameter of the network nor of a quantizer after the node that reads it."""
    used: set[str] = set()
    for node in graph:
        for position, value in enumerate(node.inputs):
            name = "" if value is None else text(value)
            known = name in used or name.endswith(CODES) or name.removesuffix(".transposed") in parameters
            if value is not None and value.is_initializer() and node.op_type not in LINEARS and not known:
                value.name = f"{node.name}_input_{position}"
                used.add(text(value))


def _require_names(graph: ir.Graph, names: list[str]) -> None:
    found = [text(value) for value in (*graph.inputs, *graph.outputs)]
    taken = [name for name, other in zip(names, found, strict=True) if name != other]
    if taken:
        raise ExportError(
            f"The inputs or outputs {taken} are called as tensors inside of the file are; choose other input_names "
            "or output_names."
        )
