"""From a QDQ file to one whose layers are integer operators of the standard domain.

DequantizeLinear -> Conv -> QuantizeLinear becomes QLinearConv, a product of two activations QLinearMatMul, a
linear layer MatMulInteger with its bias added as integers and one factor; what only moves values works on the
codes. Everything else stays between DequantizeLinear and QuantizeLinear. Signed activations become unsigned
ones with a zero point 128 greater, because runtimes have kernels for those: the numbers stay the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgeq.arithmetic import Rounding
from edgeq.onnx.finish import CODES, LINEARS
from edgeq.onnx.graphs import Array, add_initializer, constant_of, maker, numbers_of, operand, optional, readers, text
from edgeq.onnx.rounding import Chain, requantize

MOVERS = {"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "Pad", "Reshape", "Slice", "SpaceToDepth"}
MOVERS |= {"Squeeze", "Tile", "Transpose", "Unsqueeze"}
RECURRENT = ("LSTM", "GRU", "RNN")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", *RECURRENT)
SHIFT = 128

Bounds = tuple[float | None, float | None]


def to_integer(model: ir.Model, rounding: Rounding = Rounding.HALF_EVEN) -> ir.Model:
    """Rewrites a finished QDQ model in place. A `rounding` other than that of ONNX is written out. Raises
    ExportError for a bound that cannot be read: to leave it out would give a file that checks and computes something
    else.
    """
    graph = model.graph
    unsigned_activations(graph)
    for node in list(graph):
        if node.op_type == "QuantizeLinear":
            _rewrite(graph, node, rounding)
    if rounding is not Rounding.HALF_EVEN:
        for node in list(graph):
            if node.op_type == "QuantizeLinear":
                chain = Chain(graph, f"{_prefix(node)}/scaled", operand(node, 0))
                chain.add("Div", operand(node, 1))
                _put(graph, node, requantize(chain, node, rounding), (None, None))
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    return model


def unsigned_activations(graph: ir.Graph) -> None:
    """Makes int8 activations uint8: 128 is added to codes and zero points alike."""
    shifted: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Clip" and maker(operand(node, 0), "QuantizeLinear"):
            for position in (1, 2):
                _shift(graph, node, position, shifted)
        elif node.op_type in LINEARS and constant_of(operand(node, 0)) is None:
            _shift(graph, node, 2, shifted)
        elif node.op_type == "Gather" and text(node.outputs[0]).endswith(CODES):
            _shift(graph, node, 0, shifted)
        elif node.op_type == "DequantizeLinear" and _is_activation(node):
            for position in (0, 2):
                _shift(graph, node, position, shifted)


def _is_activation(dequantizer: ir.Node) -> bool:
    """Whether a constant's codes are read as an activation, not as the weight of a layer: all per-tensor int8
    constants but the second input of a layer. Two directions of a recurrent layer have their weights joined.
    """
    direct = readers(dequantizer.outputs[0])
    joined = [reader for node in direct if node.op_type == "Concat" for reader in readers(node.outputs[0])]
    is_weight = any(node.op_type in WEIGHTED for node in direct) or any(node.op_type in RECURRENT for node in joined)
    return numbers_of(operand(dequantizer, 0)).dtype == np.int8 and not is_weight


def _shift(graph: ir.Graph, node: ir.Node, position: int, shifted: dict[ir.Value, ir.Value]) -> None:
    value = optional(node, position)
    numbers = constant_of(value)
    if value is None or numbers is None or numbers.dtype != np.int8:
        return
    if value not in shifted:
        moved = (numbers.astype(np.int16) + SHIFT).astype(np.uint8)
        shifted[value] = add_initializer(graph, f"{value.name}_unsigned", moved)
    node.replace_input_with(position, shifted[value])
    for output in node.outputs:
        if output.dtype == ir.DataType.INT8:
            output.dtype = ir.DataType.UINT8


class Codes(NamedTuple):
    """The integers behind a DequantizeLinear, and how they are to be read."""

    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value

    @classmethod
    def behind(cls, value: ir.Value | None) -> Codes | None:
        """The integers that a value is dequantized from, or None."""
        node = maker(value, "DequantizeLinear")
        return None if node is None else cls(*(operand(node, position) for position in range(3)))


def _rewrite(graph: ir.Graph, quantizer: ir.Node, rounding: Rounding) -> None:
    """Replaces the float operation in front of a QuantizeLinear where an integer one does the same."""
    head, bounds = _through_clips(quantizer)
    if head is None:
        return
    if head.op_type == "Conv":
        _convolution(graph, head, quantizer, bounds, rounding)
    elif head.op_type in ("Gemm", "MatMul", "Add"):
        _product(graph, head, quantizer, bounds, rounding)
    elif head.op_type in MOVERS and bounds == (None, None):
        _mover(graph, quantizer)


def _through_clips(quantizer: ir.Node) -> tuple[ir.Node | None, Bounds]:
    """The operation in front of the activation functions, and the bounds of all of them together."""
    node = maker(operand(quantizer, 0))
    low, high = -np.inf, np.inf
    while node is not None and node.op_type in ("Relu", "Clip") and len(readers(node.outputs[0])) == 1:
        ends = (0.0, None) if node.op_type == "Relu" else (_bound(node, 1), _bound(node, 2))
        least, greatest = (other if end is None else end for end, other in zip(ends, (-np.inf, np.inf), strict=True))
        low, high = (min(max(end, low), high) for end in (least, greatest))  # what the later ones leave of them
        node = maker(operand(node, 0))
    return node, (None if low == -np.inf else low, None if high == np.inf else high)


def _bound(node: ir.Node, position: int) -> float | None:
    value = optional(node, position)
    return None if value is None else float(numbers_of(value))


def _put(graph: ir.Graph, quantizer: ir.Node, nodes: list[ir.Node], bounds: Bounds) -> None:
    """Puts `nodes`, whose last gives codes, in the place of the quantizer, behind them a Clip for those bounds
    that the type does not imply.
    """
    zero_point = numbers_of(operand(quantizer, 2))
    clip = _clip_of_codes(graph, quantizer, nodes[-1].outputs[0], bounds)
    nodes = [*nodes, *clip]
    name = quantizer.outputs[0].name
    graph.insert_before(quantizer, nodes)
    last = nodes[-1].outputs[0]
    ir.convenience.replace_all_uses_with(quantizer.outputs[0], last)
    graph.remove(quantizer, safe=True)
    last.name, last.dtype = name, ir.DataType.from_numpy(zero_point.dtype)
    for node in nodes[:-1]:
        node.outputs[0].name = f"{node.name}_output"


def _clip_of_codes(graph: ir.Graph, quantizer: ir.Node, codes: ir.Value, bounds: Bounds) -> list[ir.Node]:
    scale, zero_point = (numbers_of(operand(quantizer, position)) for position in (1, 2))
    limits = np.iinfo(zero_point.dtype)
    inputs: list[ir.Value | None] = [codes]
    for bound, limit, name in zip(bounds, (limits.min, limits.max), ("low", "high"), strict=True):
        code = limit if bound is None else int(zero_point) + round(bound / float(scale))
        if code == limit or not limits.min <= code <= limits.max:
            inputs.append(None)
        else:
            inputs.append(add_initializer(graph, f"{quantizer.name}_{name}", np.array(code, dtype=zero_point.dtype)))
    return [] if inputs[1:] == [None, None] else [ir.node("Clip", inputs, name=f"{quantizer.name}_Clip")]


def _prefix(quantizer: ir.Node) -> str:
    return text(quantizer).removesuffix("/QuantizeLinear")


def _convolution(graph: ir.Graph, conv: ir.Node, quantizer: ir.Node, bounds: Bounds, rounding: Rounding) -> None:
    x, weight = Codes.behind(optional(conv, 0)), Codes.behind(optional(conv, 1))
    bias = optional(conv, 2)
    bias_codes = Codes.behind(bias)
    if x is None or weight is None or (bias is not None and bias_codes is None):
        return
    if rounding is not Rounding.HALF_EVEN:
        chain = Chain(graph, _prefix(quantizer), x.codes)
        zero = chain.constant("weight_zero_point", 0, numbers_of(weight.codes).dtype)
        chain.add("ConvInteger", weight.codes, x.zero_point, zero, **dict(conv.attributes))
        shape = [-1] + [1] * (numbers_of(weight.codes).ndim - 2)
        if bias_codes is not None:
            chain.add("Add", chain.constant("bias", numbers_of(bias_codes.codes).reshape(shape), np.int32))
        factor = numbers_of(x.scale) * numbers_of(weight.scale) / numbers_of(operand(quantizer, 1))
        _scaled(chain, factor if factor.ndim == 0 else factor.reshape(shape))
        _put(graph, quantizer, requantize(chain, quantizer, rounding), bounds)
        return
    inputs = [*x, weight.codes, weight.scale, weight.zero_point, *quantizer.inputs[1:]]
    inputs += [] if bias_codes is None else [bias_codes.codes]
    name = f"{_prefix(quantizer)}/QLinearConv"
    _put(graph, quantizer, [ir.node("QLinearConv", inputs, attributes=dict(conv.attributes), name=name)], bounds)


def _scaled(chain: Chain, factor: Array) -> None:
    """Integer sums as real codes, in float32 throughout."""
    chain.add("Cast", to=ir.DataType.FLOAT)
    chain.add("Mul", chain.constant("factor", factor))


def _product(graph: ir.Graph, head: ir.Node, quantizer: ir.Node, bounds: Bounds, rounding: Rounding) -> None:
    """A linear layer (Gemm, or MatMul and Add) or a product of two activations (MatMul)."""
    product, bias = _product_and_bias(head)
    left, right = (Codes.behind(optional(product, position)) for position in (0, 1)) if product else (None, None)
    if product is None or left is None or right is None:
        return
    weight = constant_of(right.codes)
    if weight is None:
        if head is product and bias is None and rounding is not Rounding.HALF_EVEN:
            chain = Chain(graph, _prefix(quantizer), left.codes)
            chain.add("MatMulInteger", right.codes, left.zero_point, right.zero_point)
            _scaled(chain, numbers_of(left.scale) * numbers_of(right.scale) / numbers_of(operand(quantizer, 1)))
            _put(graph, quantizer, requantize(chain, quantizer, rounding), bounds)
        elif head is product and bias is None:
            name = f"{_prefix(quantizer)}/QLinearMatMul"
            _put(
                graph, quantizer, [ir.node("QLinearMatMul", [*left, *right, *quantizer.inputs[1:]], name=name)], bounds
            )
        return
    if "transB" in product.attributes and product.attributes["transB"].as_int():
        weight = np.ascontiguousarray(weight.T)
    _linear(graph, quantizer, left, weight, numbers_of(right.scale), bias, bounds, rounding)


def _product_and_bias(head: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """The product and the codes of its bias; no product where something is in the way."""
    if head.op_type == "MatMul":
        return head, None
    if head.op_type == "Gemm":
        scaled = any(head.attributes[key].as_float() != 1 for key in ("alpha", "beta") if key in head.attributes)
        bias = Codes.behind(optional(head, 2))
        missing = optional(head, 2) is not None and bias is None
        return (None, None) if scaled or missing else (head, None if bias is None else bias.codes)
    for position in (0, 1):
        product, bias = maker(operand(head, position), "MatMul"), Codes.behind(operand(head, 1 - position))
        numbers = None if bias is None else constant_of(bias.codes)
        if product is not None and bias is not None and numbers is not None and numbers.dtype == np.int32:
            return product, bias.codes
    return None, None


def _linear(
    graph: ir.Graph,
    quantizer: ir.Node,
    x: Codes,
    weight: Array,
    weight_scale: Array,
    bias: ir.Value | None,
    bounds: Bounds,
    rounding: Rounding,
) -> None:
    """MatMulInteger, Add of the integer bias, and requantization: Cast, Mul by one factor, QuantizeLinear of
    scale one, which rounds and saturates.
    """
    prefix = _prefix(quantizer)
    factor = numbers_of(x.scale) * weight_scale / numbers_of(operand(quantizer, 1))  # float32 throughout
    chain = Chain(graph, prefix, x.codes)
    codes = chain.constant("weight_integer", weight, weight.dtype)
    chain.add("MatMulInteger", codes, x.zero_point, chain.constant("weight_integer_zero_point", 0, weight.dtype))
    if bias is not None:
        chain.add("Add", bias)
    _scaled(chain, factor)
    if rounding is not Rounding.HALF_EVEN:
        _put(graph, quantizer, requantize(chain, quantizer, rounding), bounds)
        return
    chain.add("QuantizeLinear", chain.constant("one", 1), operand(quantizer, 2))
    chain.nodes[-1].name = f"{prefix}/Requantize"
    _put(graph, quantizer, chain.nodes, bounds)


def _mover(graph: ir.Graph, quantizer: ir.Node) -> None:
    """Lets a chain of operations that move values work on codes: all of them, back to each DequantizeLinear, if
    that has the quantizer's own parameters.
    """
    chain: list[ir.Node] = []
    entries: list[tuple[ir.Node, int, ir.Value]] = []
    pending = [maker(operand(quantizer, 0))]
    while pending:
        node = pending.pop()
        if node is None or not _moves(node):
            return
        chain.append(node)
        for position in range(len(node.inputs)) if node.op_type == "Concat" else range(1):
            source = Codes.behind(optional(node, position))
            if source is None:
                pending.append(maker(operand(node, position)))
            elif _same(source, quantizer):
                entries.append((node, position, source.codes))
            else:
                return
    for node, position, codes in entries:
        node.replace_input_with(position, codes)
    for node in chain:
        if node.op_type == "Pad":
            node.resize_inputs(max(3, len(node.inputs)))
            node.replace_input_with(2, operand(quantizer, 2))
        node.outputs[0].dtype = ir.DataType.from_numpy(numbers_of(operand(quantizer, 2)).dtype)
    last, name = operand(quantizer, 0), quantizer.outputs[0].name
    ir.convenience.replace_all_uses_with(quantizer.outputs[0], last)
    graph.remove(quantizer, safe=True)
    last.name = name


def _moves(node: ir.Node) -> bool:
    """Whether a node does the same to codes as to the numbers, and nobody else reads it."""
    alone = len(node.outputs) == 1 and len(readers(node.outputs[0])) == 1
    return node.op_type in MOVERS and alone and (node.op_type != "Pad" or _pads_zero(node))


def _same(source: Codes, quantizer: ir.Node) -> bool:
    pairs = ((source.scale, operand(quantizer, 1)), (source.zero_point, operand(quantizer, 2)))
    return all(np.array_equal(numbers_of(a), numbers_of(b)) for a, b in pairs)


def _pads_zero(node: ir.Node) -> bool:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    value = optional(node, 2)
    return mode != "constant" or value is None or float(numbers_of(value)) == 0.0
