"""The table of operators: what each one means for quantization. The only place that knows.

To support another operation, add a row here and a test of it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from edgeq.graph.put import put
from edgeq.modules.stubs import DeQuantStub, QuantStub


class Behaviour(Enum):
    """What an operation does with the representation of its inputs."""

    LAYER = "layer"  # has weights: weight, bias and output are quantized, in one kernel
    MATMUL = "matmul"  # a product of two quantized tensors, in one kernel
    OWN = "own range"  # computed on quantized inputs, its output gets a range of its own
    FIXED = "fixed range"  # as above, with a range that is known beforehand
    SHARE = "shares its input's range"  # only moves or picks values: the codes stay what they are
    CLIP = "clips"  # absorbed by the quantizer behind it, else shares its input's range if it clips at zero only
    FLOAT = "stays float"  # on dequantized inputs, its output is not quantized unless a reader needs it
    PLAIN = "is no tensor"  # sizes, types, masks and indices: never touched


Bounds = Callable[[fx.Node, nn.Module | None], tuple[float | None, float | None] | None]
Condition = Callable[[fx.Node, nn.Module | None], bool]


@dataclass(frozen=True)
class Operator:
    """One row. `inputs` are the positions of the arguments that carry data (None: all tensors among them).
    `range` belongs to FIXED, `bounds` to CLIP. Where `holds` is given and false for a node, `otherwise` applies.
    """

    name: str
    behaviour: Behaviour
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Any, ...] = ()
    methods: tuple[str, ...] = ()
    inputs: tuple[int, ...] | None = None
    range: tuple[float, float] | None = None
    bounds: Bounds | None = None
    holds: Condition | None = None
    otherwise: Behaviour = Behaviour.OWN
    note: str = ""


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _constant_bounds(low: float | None, high: float | None) -> Bounds:
    return lambda node, module: (low, high)


def _hardtanh_bounds(node: fx.Node, module: nn.Module | None) -> tuple[float, float]:
    if isinstance(module, nn.Hardtanh):
        return float(module.min_val), float(module.max_val)
    return float(argument(node, 1, "min_val", -1.0)), float(argument(node, 2, "max_val", 1.0))


def _clamp_bounds(node: fx.Node, module: nn.Module | None) -> tuple[float | None, float | None] | None:
    low, high = argument(node, 1, "min"), argument(node, 2, "max")
    if any(isinstance(bound, fx.Node) for bound in (low, high)):
        return None
    return (None if low is None else float(low)), (None if high is None else float(high))


def _one_bound(low: bool) -> Bounds:
    def bounds(node: fx.Node, module: nn.Module | None) -> tuple[float | None, float | None] | None:
        bound = argument(node, 1, "min" if low else "max")
        if isinstance(bound, fx.Node):
            return None
        return (float(bound), None) if low else (None, float(bound))

    return bounds


def _pads_with_zero(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return float(getattr(module, "value", 0.0)) == 0.0
    mode, value = argument(node, 2, "mode", "constant"), argument(node, 3, "value")
    return mode != "constant" or value is None or (not isinstance(value, fx.Node) and float(value) == 0.0)


def _picks_neighbours(node: fx.Node, module: nn.Module | None) -> bool:
    mode = module.mode if isinstance(module, nn.Upsample) else argument(node, 3, "mode", "nearest")
    return str(mode).startswith("nearest")


def _returns_values_only(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return not module.return_indices
    return not node.kwargs.get("return_indices", False)


def _is_binary(node: fx.Node, module: nn.Module | None) -> bool:
    """torch.max(a, b) picks values; torch.max(a, dim) returns a pair and torch.max(a) reduces."""
    return isinstance(argument(node, 1, "other"), fx.Node)


def _gives_values(node: fx.Node, module: nn.Module | None) -> bool:
    """x.T and x.max(1).values do; so does an attribute that tensors lack, of an input that is no tensor itself."""
    return node.args[1] in ("T", "mT", "H", "mH", "data", "values") or not hasattr(torch.Tensor, str(node.args[1]))


def _picks_from_tensors(node: fx.Node, module: nn.Module | None) -> bool:
    """A number to pick from, torch.where(mask, x, 0.5), need not have a code in the range of the tensor."""
    return all(isinstance(argument(node, *at), fx.Node) for at in ((1, "input"), (2, "other")))


LEAST_MARK = 1e4  # no activation is as great

B, F, O = Behaviour, functional, Operator

TABLE: tuple[Operator, ...] = (
    # ---- layers with weights
    O("conv", B.LAYER, (nn.Conv1d, nn.Conv2d, nn.Conv3d), (F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d), inputs=(0,)),
    O("conv_transpose", B.LAYER, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), inputs=(0,)),
    O("linear", B.LAYER, (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear), (F.linear,), inputs=(0,)),
    O("matmul", B.MATMUL, (), (torch.matmul, torch.bmm, operator.matmul), ("matmul", "bmm"), inputs=(0, 1)),
    # ---- arithmetic
    O("add", B.OWN, (), (operator.add, torch.add), ("add", "__radd__")),
    O("sub", B.OWN, (), (operator.sub, torch.sub, torch.subtract, torch.rsub), ("sub", "subtract", "rsub")),
    O("mul", B.OWN, (), (operator.mul, torch.mul, torch.multiply), ("mul", "multiply")),
    O("div", B.OWN, (), (operator.truediv, torch.div, torch.divide, torch.true_divide), ("div", "divide", "true_divide")),
    O("neg", B.OWN, (), (operator.neg, torch.neg), ("neg",)),
    O("put", B.OWN, (), (put,), inputs=(0, 2)),
    O("mean", B.OWN, (), (torch.mean,), ("mean",), inputs=(0,)),
    O("sum", B.OWN, (), (torch.sum,), ("sum",), inputs=(0,)),
    O("avg_pool", B.OWN, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
      (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), inputs=(0,),
      note="a mean is narrower than what it is taken of: sharing the input's range would cost codes"),
    # ---- activations that bend values
    O("gelu", B.OWN, (nn.GELU,), (F.gelu,), inputs=(0,)),
    O("silu", B.OWN, (nn.SiLU,), (F.silu,), inputs=(0,)),
    O("mish", B.OWN, (nn.Mish,), (F.mish,), inputs=(0,)),
    O("hardswish", B.OWN, (nn.Hardswish,), (F.hardswish,), inputs=(0,)),
    O("leaky_relu", B.OWN, (nn.LeakyReLU,), (F.leaky_relu,), inputs=(0,)),
    O("elu", B.OWN, (nn.ELU, nn.CELU, nn.SELU), (F.elu, F.celu, F.selu), inputs=(0,)),
    O("softplus", B.OWN, (nn.Softplus,), (F.softplus,), inputs=(0,)),
    O("prelu", B.OWN, (nn.PReLU,), (F.prelu, torch.prelu), inputs=(0,)),
    # ---- normalisation that is not folded into a layer
    O("batch_norm", B.OWN, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), (F.batch_norm,), inputs=(0,)),
    O("layer_norm", B.OWN, (nn.LayerNorm,), (F.layer_norm,), inputs=(0,)),
    O("group_norm", B.OWN, (nn.GroupNorm,), (F.group_norm,), inputs=(0,)),
    O("instance_norm", B.OWN, (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), (F.instance_norm,), inputs=(0,)),
    # ---- known ranges
    O("sigmoid", B.FIXED, (nn.Sigmoid,), (torch.sigmoid, F.sigmoid), ("sigmoid",), inputs=(0,), range=(0.0, 1.0)),
    O("hardsigmoid", B.FIXED, (nn.Hardsigmoid,), (F.hardsigmoid,), inputs=(0,), range=(0.0, 1.0)),
    O("softmax", B.FIXED, (nn.Softmax, nn.Softmax2d), (torch.softmax, F.softmax), ("softmax",), inputs=(0,), range=(0.0, 1.0)),
    O("tanh", B.FIXED, (nn.Tanh,), (torch.tanh, F.tanh), ("tanh",), inputs=(0,), range=(-1.0, 1.0)),
    # ---- clips
    O("relu", B.CLIP, (nn.ReLU,), (torch.relu, F.relu), ("relu",), inputs=(0,), bounds=_constant_bounds(0.0, None)),
    O("relu6", B.CLIP, (nn.ReLU6,), (F.relu6,), inputs=(0,), bounds=_constant_bounds(0.0, 6.0)),
    O("hardtanh", B.CLIP, (nn.Hardtanh,), (F.hardtanh,), inputs=(0,), bounds=_hardtanh_bounds),
    O("clamp", B.CLIP, (), (torch.clamp, torch.clip), ("clamp", "clip"), inputs=(0,), bounds=_clamp_bounds),
    O("clamp_min", B.CLIP, (), (torch.clamp_min,), ("clamp_min",), inputs=(0,), bounds=_one_bound(low=True)),
    O("clamp_max", B.CLIP, (), (torch.clamp_max,), ("clamp_max",), inputs=(0,), bounds=_one_bound(low=False)),
    # ---- operations that only move or pick values
    O("cat", B.SHARE, (), (torch.cat, torch.concat, torch.concatenate, torch.stack)),
    O("maximum", B.SHARE, (), (torch.maximum, torch.minimum), ("maximum", "minimum")),
    O("max", B.SHARE, (), (torch.max, torch.min), ("max", "min"), holds=_is_binary, otherwise=B.FLOAT, note="a reduction, which may give indices as well"),
    O("where", B.SHARE, (), (torch.where,), inputs=(1, 2), holds=_picks_from_tensors, otherwise=B.FLOAT, note="the number that it picks may have no code"),
    O("extreme", B.SHARE, (), (torch.amax, torch.amin), ("amax", "amin"), inputs=(0,)),
    O("max_pool", B.SHARE, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
      (F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
      inputs=(0,), holds=_returns_values_only, otherwise=B.FLOAT, note="it gives indices as well"),
    O("pad", B.SHARE, (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d,
                       nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
      (F.pad,), inputs=(0,), holds=_pads_with_zero),
    O("interpolate", B.SHARE, (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), (F.interpolate,), inputs=(0,), holds=_picks_neighbours),
    O("shape", B.SHARE, (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
      (torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.swapaxes, torch.swapdims, torch.movedim, torch.squeeze, torch.unsqueeze, torch.flip,
       torch.roll, torch.tile, torch.narrow, torch.select, torch.index_select, torch.gather, torch.repeat_interleave, torch.broadcast_to, F.pixel_shuffle,
       F.pixel_unshuffle, torch.t, torch.clone),
      ("flatten", "unflatten", "reshape", "reshape_as", "view", "view_as", "permute", "transpose", "swapaxes", "swapdims", "movedim", "squeeze", "unsqueeze", "flip",
       "roll", "tile", "narrow", "select", "index_select", "gather", "repeat", "repeat_interleave", "expand", "expand_as", "broadcast_to", "contiguous", "clone", "t"),
      inputs=(0,)),
    O("split", B.SHARE, (), (torch.chunk, torch.split, torch.unbind, torch.tensor_split), ("chunk", "split", "unbind", "tensor_split"), inputs=(0,)),
    O("getitem", B.SHARE, (), (operator.getitem,), inputs=(0,)),
    O("same", B.SHARE, (nn.Identity, QuantStub, DeQuantStub, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout), (F.dropout, F.dropout2d, F.dropout3d),
      ("float", "to", "detach", "type_as", "cpu", "cuda"), inputs=(0,)),
    # ---- deliberately float
    O("log_softmax", B.FLOAT, (nn.LogSoftmax,), (torch.log_softmax, F.log_softmax), ("log_softmax",), inputs=(0,),
      note="its small differences near zero are what a loss looks at, and one scale for the whole range loses them"),
    O("exponential", B.FLOAT, (), (torch.exp, torch.log, torch.pow, operator.pow, torch.sqrt, torch.rsqrt, torch.square, torch.reciprocal, torch.abs),
      ("exp", "log", "pow", "sqrt", "rsqrt", "square", "reciprocal", "abs"), inputs=(0,), note="no backend runs it in integers"),
    O("masked_fill", B.FLOAT, (), (torch.masked_fill,), ("masked_fill",), inputs=(0,), note="the number that it fills in may have no code"),
    O("embedding", B.FLOAT, (nn.Embedding, nn.EmbeddingBag), (F.embedding, F.embedding_bag), inputs=(1,), note="a table look-up: nothing is computed"),
    O("attention", B.FLOAT, (nn.MultiheadAttention,), (F.scaled_dot_product_attention,), note="one opaque call in float; written out with matmul and softmax it is quantized"),
    O("recurrent", B.FLOAT, (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell), inputs=(0,), note="a loop over time inside of one call"),
    # ---- no floating tensor comes out
    O("attribute", B.SHARE, (), (getattr,), inputs=(0,), holds=_gives_values, otherwise=B.PLAIN),
    O("size", B.PLAIN, (), (len, torch.numel), ("size", "dim", "numel", "ndimension", "stride", "is_contiguous", "is_floating_point", "item", "tolist", "get_device")),
    O("integer", B.PLAIN, (), (torch.argmax, torch.argmin, torch.argsort, torch.arange, torch.nonzero), ("argmax", "argmin", "argsort", "long", "int", "bool", "nonzero")),
    O("comparison", B.PLAIN, (), (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge,
                                  torch.logical_and, torch.logical_or, torch.logical_not, operator.and_, operator.or_, operator.not_, operator.floordiv, operator.mod, torch.isnan),
      ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "any", "all", "isnan")),
)  # fmt: skip

UNKNOWN = O("unknown", B.FLOAT, note="not in edgeq's table of operators")

_BY_MODULE = {cls: row for row in TABLE for cls in row.modules}
_BY_FUNCTION = {function: row for row in TABLE for function in row.functions}
_BY_METHOD = {method: row for row in TABLE for method in row.methods}


def operator_of(node: fx.Node, module: nn.Module | None) -> Operator:
    """The row of a call; UNKNOWN for one that the table does not hold."""
    if module is not None:
        return _BY_MODULE.get(type(module), UNKNOWN)
    if node.op == "call_method":
        return _BY_METHOD.get(str(node.target), UNKNOWN)
    try:
        return _BY_FUNCTION.get(node.target, UNKNOWN)
    except TypeError:  # an unhashable callable
        return UNKNOWN


def behaviour_of(node: fx.Node, module: nn.Module | None) -> Behaviour:
    """What the operation of a node does with quantization, its arguments considered."""
    row = operator_of(node, module)
    if row.behaviour is Behaviour.CLIP and row.bounds is not None and row.bounds(node, module) is None:
        return Behaviour.OWN
    if row.holds is not None and not row.holds(node, module):
        return row.otherwise
    return row.behaviour


def marks(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a number marks places rather than being a value there, as the -inf of a masked attention does: no
    range may hold it.
    """
    at = {"masked_fill": ((2, "value"),), "where": ((1, "input"), (2, "other"))}.get(operator_of(node, module).name, ())
    values = [argument(node, *where) for where in at]
    return any(isinstance(value, int | float) and abs(value) >= LEAST_MARK for value in values)


def data_inputs(node: fx.Node, module: nn.Module | None) -> list[fx.Node]:
    """The nodes whose values an operation computes with, as opposed to its parameters and sizes."""
    positions = operator_of(node, module).inputs
    if positions is None:
        return list(node.all_input_nodes)
    names = ("input", "other", "mat2", "value") if node.op != "call_module" else ("input",)
    values = [node.args[position] for position in positions if position < len(node.args)]
    values += [node.kwargs[name] for name in names if name in node.kwargs]
    found: list[fx.Node] = []
    fx.node.map_arg(values, found.append)
    return found
