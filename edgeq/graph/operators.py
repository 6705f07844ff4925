"""The table of operators: what each one means for quantization. The only place that knows.

To support another operation, add a row here and a test of it.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from edgeq.graph.cells import zero_state
from edgeq.graph.checks import require_size, require_value
from edgeq.graph.conditions import (
    DROPOUTS,
    Bounds,
    Condition,
    clamp_bounds,
    constant_bounds,
    gives_values,
    hardtanh_bounds,
    is_binary,
    is_module,
    is_not_accumulating,
    keeps_table,
    keeps_values,
    one_bound,
    pads_with_zero,
    picks_codes,
    picks_neighbours,
    returns_values_only,
)
from edgeq.graph.masks import mask_scores
from edgeq.graph.part import part
from edgeq.graph.put import put
from edgeq.modules.affine import Affine
from edgeq.modules.functional_norm import FrozenNorm, FunctionalNorm
from edgeq.modules.norm_slice import NormSlice
from edgeq.modules.normalization import Normalization
from edgeq.modules.stubs import DeQuantStub, QuantStub
from edgeq.modules.torch_class import torch_class


class Behaviour(Enum):
    """What an operation does with the representation of its inputs."""

    LAYER = "layer"  # has weights: weight, bias and output are quantized, in one kernel
    MATMUL = "matmul"  # a product of two quantized tensors, in one kernel
    OWN = "own range"  # computed on quantized inputs, its output gets a range of its own
    STORED = "stored weights"  # as above, with weights that are kept as integers
    FIXED = "fixed range"  # as above, with a range that is known beforehand
    SHARE = "shares its input's range"  # only moves or picks values: the codes stay what they are
    CLIP = "clips"  # absorbed by the quantizer behind it, else shares its input's range if it clips at zero only
    FLOAT = "stays float"  # on dequantized inputs, its output is not quantized unless a reader needs it
    PLAIN = "is no tensor"  # sizes, types, masks and indices: never touched


@dataclass(frozen=True)
class Operator:
    """One row. `inputs` are the positions of the arguments that carry data (None: all tensors among them).
    `range` belongs to FIXED, `bounds` to CLIP. Where `holds` is given and false for a node, `otherwise` applies.
    `zeros` says that zeros come in among values that are moved; `fills` are the positions and names of arguments that
    may be a number which is put among the values.
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
    zeros: bool = False
    fills: tuple[tuple[int, str], ...] = ()
    note: str = ""


def named(names: str) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """The functions of torch and the methods of tensors of these names; most operations are both."""
    words = names.split()
    functions = tuple(getattr(torch, word) for word in words if hasattr(torch, word))
    return functions, tuple(word for word in words if hasattr(torch.Tensor, word))


B, F, O = Behaviour, functional, Operator

SHAPES = (
    "flatten unflatten ravel reshape reshape_as view view_as permute transpose t adjoint swapaxes swapdims movedim moveaxis squeeze unsqueeze "
    "flip fliplr flipud rot90 roll tile narrow narrow_copy select index_select gather take take_along_dim masked_select diagonal unfold "
    "repeat repeat_interleave expand expand_as broadcast_to contiguous clone"
)
INTEGERS = "argmax argmin argsort argwhere nonzero count_nonzero bincount unique unique_consecutive histc"
COMPARISONS = (
    "eq ne lt le gt ge equal not_equal less less_equal greater greater_equal isnan isinf isfinite isposinf isneginf isclose allclose signbit any all "
    "logical_and logical_or logical_xor logical_not bitwise_and bitwise_or bitwise_xor bitwise_not floor_divide remainder fmod"
)  # fmt: skip

TABLE: tuple[Operator, ...] = (
    # ---- layers with weights
    O("conv", B.LAYER, (nn.Conv1d, nn.Conv2d, nn.Conv3d), (F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d), inputs=(0,)),
    O("conv_transpose", B.LAYER, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), inputs=(0,)),
    O("linear", B.LAYER, (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear), (F.linear,), inputs=(0,)),
    O("matmul", B.MATMUL, (), (operator.matmul, *named("matmul bmm mm mv dot")[0]), named("matmul bmm mm mv dot")[1], inputs=(0, 1)),
    # ---- weights kept as integers, computed with in float
    O("embedding", B.STORED, (nn.Embedding,), (F.embedding,), inputs=(), holds=keeps_table, otherwise=B.FLOAT, note="max_norm scales rows of the table at each look-up"),
    O("embedding_bag", B.STORED, (nn.EmbeddingBag,), (F.embedding_bag,), inputs=(), holds=keeps_table, otherwise=B.FLOAT, note="max_norm scales rows of the table at each look-up"),
    O("recurrent", B.STORED, (nn.LSTM, nn.GRU, nn.RNN), (part,), inputs=(0, 1), holds=is_module, note="the loop over time inside of the call computes in float, with weights from integers"),
    # ---- arithmetic
    O("add", B.OWN, (), (operator.add, torch.add), ("add", "__radd__")),
    O("sub", B.OWN, (), (operator.sub, torch.sub, torch.subtract, torch.rsub), ("sub", "subtract", "rsub")),
    O("mul", B.OWN, (), (operator.mul, torch.mul, torch.multiply), ("mul", "multiply"), fills=((0, "input"), (1, "other"))),
    O("div", B.OWN, (), (operator.truediv, torch.div, torch.divide, torch.true_divide), ("div", "divide", "true_divide")),
    O("affine", B.OWN, (Affine,), inputs=(0,)),
    O("neg", B.OWN, (), (operator.neg, *named("neg negative")[0]), named("neg negative")[1]),
    O("lerp", B.OWN, (), *named("lerp")),
    O("put", B.OWN, (), (put,), inputs=(0, 2), fills=((2, "value"),)),
    O("mean", B.OWN, (), *named("mean"), inputs=(0,)),
    O("sum", B.OWN, (), *named("sum nansum cumsum"), inputs=(0,)),
    O("scatter_sum", B.OWN, (), *named("scatter_add index_add"), inputs=(0, 3)),
    O("reduction", B.OWN, (), (torch.linalg.norm, torch.linalg.vector_norm, F.normalize, *named("prod cumprod var std norm logsumexp logcumsumexp")[0]),
      named("prod cumprod var std norm logsumexp logcumsumexp")[1], inputs=(0,)),
    O("distance", B.OWN, (nn.PairwiseDistance,), (F.pairwise_distance, *named("cdist dist hypot")[0]), ("dist", "hypot"), inputs=(0, 1)),
    O("similarity", B.FIXED, (nn.CosineSimilarity,), (F.cosine_similarity,), inputs=(0, 1), range=(-1.0, 1.0)),
    O("avg_pool", B.OWN, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
      (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.avg_pool1d, torch.adaptive_avg_pool1d), inputs=(0,),
      note="a mean is narrower than what it is taken of: sharing the input's range would cost codes"),
    O("power_pool", B.OWN, (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d), (F.lp_pool1d, F.lp_pool2d, F.lp_pool3d), inputs=(0,)),
    O("fold", B.OWN, (nn.Fold,), (F.fold,), inputs=(0,), note="where patches overlap their values are added"),
    O("grid_sample", B.OWN, (), (F.grid_sample,), inputs=(0,), note="the values are interpolated; the grid is coordinates, and stays as it comes"),
    # ---- activations that bend values
    O("gelu", B.OWN, (nn.GELU,), (F.gelu,), inputs=(0,)),
    O("silu", B.OWN, (nn.SiLU,), (F.silu,), inputs=(0,)),
    O("mish", B.OWN, (nn.Mish,), (F.mish,), inputs=(0,)),
    O("hardswish", B.OWN, (nn.Hardswish,), (F.hardswish,), inputs=(0,)),
    O("leaky_relu", B.OWN, (nn.LeakyReLU,), (F.leaky_relu,), inputs=(0,)),
    O("elu", B.OWN, (nn.ELU, nn.CELU, nn.SELU), (F.elu, F.celu, F.selu, torch.celu, torch.selu), inputs=(0,)),
    O("softplus", B.OWN, (nn.Softplus,), (F.softplus,), inputs=(0,)),
    O("prelu", B.OWN, (nn.PReLU,), (F.prelu, torch.prelu), ("prelu",), inputs=(0,)),
    O("rrelu", B.OWN, (nn.RReLU,), (F.rrelu, torch.rrelu), inputs=(0,), note="in evaluation its slope is one number"),
    O("shrink", B.OWN, (nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold), (F.hardshrink, F.softshrink, F.tanhshrink, F.threshold, torch.threshold), ("hardshrink",), inputs=(0,)),
    O("logsigmoid", B.OWN, (nn.LogSigmoid,), (F.logsigmoid,), inputs=(0,)),
    O("glu", B.OWN, (nn.GLU,), (F.glu,), inputs=(0,), note="traced models have it written out: chunk, sigmoid, mul"),
    # ---- functions of one number: a table of 256 entries on any accelerator, whatever they are
    O("abs", B.OWN, (), (operator.abs, *named("abs absolute")[0]), ("abs", "absolute"), inputs=(0,)),
    O("power", B.OWN, (), (operator.pow, torch.pow), ("pow",), note="x ** 2 is written as x * x"),
    O("function", B.OWN, (), *named("exp exp2 expm1 log1p sqrt square rsqrt reciprocal erf erfc sin cos tan asin acos atan sinh cosh asinh atanh arcsin arccos arctan sinc"), inputs=(0,)),
    O("step", B.OWN, (), *named("floor ceil round trunc fix frac sign sgn nan_to_num"), inputs=(0,), note="exact for each code"),
    # ---- normalisation that is not folded into a layer
    O("batch_norm", B.OWN, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.modules.batchnorm._BatchNorm, NormSlice, FunctionalNorm, FrozenNorm), (F.batch_norm,), inputs=(0,)),
    O("layer_norm", B.OWN, (nn.LayerNorm, Normalization), (F.layer_norm,), inputs=(0,)),
    O("group_norm", B.OWN, (nn.GroupNorm,), (F.group_norm,), inputs=(0,)),
    O("rms_norm", B.OWN, (nn.RMSNorm,), (F.rms_norm, torch.rms_norm), inputs=(0,)),
    O("local_norm", B.OWN, (nn.LocalResponseNorm, nn.CrossMapLRN2d), (F.local_response_norm,), inputs=(0,)),
    O("instance_norm", B.OWN, (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), (F.instance_norm,), inputs=(0,)),
    # ---- known ranges
    O("sigmoid", B.FIXED, (nn.Sigmoid,), (torch.sigmoid, F.sigmoid, torch.special.expit), ("sigmoid",), inputs=(0,), range=(0.0, 1.0)),
    O("hardsigmoid", B.FIXED, (nn.Hardsigmoid,), (F.hardsigmoid,), inputs=(0,), range=(0.0, 1.0)),
    O("softmax", B.FIXED, (nn.Softmax, nn.Softmax2d, nn.Softmin), (torch.softmax, F.softmax, F.softmin), ("softmax",), inputs=(0,), range=(0.0, 1.0)),
    O("softsign", B.FIXED, (nn.Softsign,), (F.softsign,), inputs=(0,), range=(-1.0, 1.0)),
    O("tanh", B.FIXED, (nn.Tanh,), (torch.tanh, F.tanh), ("tanh",), inputs=(0,), range=(-1.0, 1.0)),
    O("zero_state", B.FIXED, (), (zero_state,), inputs=(), range=(-1.0, 1.0)),
    # ---- clips
    O("relu", B.CLIP, (nn.ReLU,), (torch.relu, F.relu), ("relu",), inputs=(0,), bounds=constant_bounds(0.0, None)),
    O("relu6", B.CLIP, (nn.ReLU6,), (F.relu6,), inputs=(0,), bounds=constant_bounds(0.0, 6.0)),
    O("hardtanh", B.CLIP, (nn.Hardtanh,), (F.hardtanh,), inputs=(0,), bounds=hardtanh_bounds),
    O("clamp", B.CLIP, (), (torch.clamp, torch.clip), ("clamp", "clip"), inputs=(0,), bounds=clamp_bounds),
    O("clamp_min", B.CLIP, (), (torch.clamp_min,), ("clamp_min",), inputs=(0,), bounds=one_bound(low=True)),
    O("clamp_max", B.CLIP, (), (torch.clamp_max,), ("clamp_max",), inputs=(0,), bounds=one_bound(low=False)),
    # ---- operations that only move or pick values
    O("cat", B.SHARE, (), named("cat concat concatenate stack hstack vstack dstack column_stack row_stack")[0]),
    O("maximum", B.SHARE, (), *named("maximum minimum fmax fmin")),
    O("max", B.SHARE, (), (torch.max, torch.min), ("max", "min"), holds=is_binary, otherwise=B.FLOAT, note="it works on values and their places together"),
    O("where", B.SHARE, (), (torch.where,), inputs=(1, 2), holds=picks_codes((1, "input"), (2, "other")), zeros=True, fills=((1, "input"), (2, "other")),
      note="zero has a code in every range; another number that is picked need not"),
    O("masked_fill", B.SHARE, (), *named("masked_fill"), inputs=(0, 2), holds=picks_codes((2, "value")), zeros=True, fills=((2, "value"),)),
    O("index_fill", B.SHARE, (), *named("index_fill"), inputs=(0, 3), holds=picks_codes((3, "value")), zeros=True, fills=((3, "value"),)),
    O("scatter", B.SHARE, (), *named("scatter index_copy"), inputs=(0, 3), holds=picks_codes((3, "src")), zeros=True, fills=((3, "value"),)),
    O("index_put", B.SHARE, (), *named("index_put"), inputs=(0, 2), holds=is_not_accumulating),
    O("masked_scatter", B.SHARE, (), *named("masked_scatter"), inputs=(0, 2)),
    O("inset", B.SHARE, (), *named("slice_scatter select_scatter diagonal_scatter"), inputs=(0, 1)),
    O("extreme", B.SHARE, (), (torch.amax, torch.amin), ("amax", "amin"), inputs=(0,)),
    O("max_pool", B.SHARE, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
      (F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
      inputs=(0,), holds=returns_values_only, otherwise=B.FLOAT, note="it works on values and their places together"),
    O("pad", B.SHARE, (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d,
                       nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
      (F.pad,), inputs=(0,), holds=pads_with_zero, zeros=True, fills=((3, "value"),)),
    O("interpolate", B.SHARE, (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), (F.interpolate,), inputs=(0,), holds=picks_neighbours),
    O("shape", B.SHARE, (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
      (F.pixel_shuffle, F.pixel_unshuffle, torch.channel_shuffle, torch.native_channel_shuffle, torch.atleast_1d, torch.atleast_2d, torch.atleast_3d, *named(SHAPES)[0]),
      named(SHAPES)[1], inputs=(0,)),
    O("triangle", B.SHARE, (), *named("tril triu diag diag_embed diagflat"), inputs=(0,), zeros=True),
    O("unfold", B.SHARE, (nn.Unfold,), (F.unfold,), inputs=(0,), zeros=True),
    O("split", B.SHARE, (), *named("chunk split split_with_sizes unbind tensor_split hsplit vsplit dsplit unsafe_chunk unsafe_split"), inputs=(0,)),
    O("getitem", B.SHARE, (), (operator.getitem,), inputs=(0,)),
    O("same", B.SHARE, (nn.Identity, QuantStub, DeQuantStub, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
      (*DROPOUTS, operator.pos, *named("detach positive")[0]), ("float", "to", "type", "detach", "type_as", "cpu", "cuda", "positive"), inputs=(0,), holds=keeps_values, otherwise=B.FLOAT,
      note="another floating type, or values that are drawn anew at each call"),
    # ---- deliberately float
    O("log_softmax", B.FLOAT, (nn.LogSoftmax,), (torch.log_softmax, F.log_softmax), ("log_softmax",), inputs=(0,),
      note="its small differences near zero are what a loss looks at, and one scale for the whole range loses them"),
    O("logarithm", B.FLOAT, (), *named("log log2 log10 logit"), inputs=(0,), note="what is near zero counts most, and one scale for the whole range loses it"),
    O("mask", B.FLOAT, (), (mask_scores,), inputs=(0,), note="the number that a mask adds or fills in has no code"),
    O("attention", B.FLOAT, (nn.MultiheadAttention,), note="with bias_k or add_zero_attn it is one opaque call; without them it is written out"),
    O("cell", B.FLOAT, (nn.LSTMCell, nn.GRUCell, nn.RNNCell), inputs=(0, 1), note="one opaque call; traced models have it written out in linear layers and gates"),
    O("precision", B.FLOAT, (), (), ("half", "double", "bfloat16"), inputs=(0,), note="another floating type"),
    O("creator", B.FLOAT, (), (*named("zeros ones full empty eye linspace logspace zeros_like ones_like full_like empty_like")[0],), inputs=(), fills=((1, "fill_value"),), note="it makes numbers and reads none"),
    O("new", B.FLOAT, (), (), ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"), inputs=(), fills=((2, "fill_value"),), note="it makes numbers and reads none"),
    O("random", B.FLOAT, (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d),
      (F.fractional_max_pool2d, F.fractional_max_pool3d, F.gumbel_softmax, *named("rand randn rand_like randn_like randint_like bernoulli multinomial normal poisson")[0]),
      ("bernoulli", "multinomial"), inputs=(0,), note="drawn anew at each call: no two runs agree"),
    O("with_places", B.FLOAT, (nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d),
      (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d, F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices, F.adaptive_max_pool1d_with_indices,
       F.adaptive_max_pool2d_with_indices, F.adaptive_max_pool3d_with_indices, *named("sort topk median mode kthvalue cummax cummin aminmax msort nanmedian quantile")[0]),
      ("sort", "topk", "median", "mode", "kthvalue", "cummax", "cummin", "aminmax", "msort", "nanmedian", "quantile"), inputs=(0,), note="it works on values and their places together"),
    O("moments", B.FLOAT, (), (torch.var_mean, torch.std_mean), inputs=(0,), note="it gives two tensors of different ranges in one call"),
    O("contraction", B.FLOAT, (nn.Bilinear,), (F.bilinear, torch.einsum, torch.tensordot, torch.inner, torch.kron, torch.linalg.multi_dot, torch.chain_matmul), ("inner", "kron"),
      note="more than a product of two matrices; traced models have einsum and bilinear written out where they come to one"),
    O("grid", B.FLOAT, (), (F.affine_grid, torch.meshgrid), inputs=(0,), note="it gives coordinates, for which steps of 8 bits are too coarse"),
    O("complex", B.FLOAT, (), (torch.fft.fft, torch.fft.ifft, torch.fft.rfft, torch.fft.irfft, torch.fft.fft2, torch.fft.ifft2, torch.fft.rfft2, torch.fft.irfft2,
                               torch.fft.fftn, torch.fft.ifftn, torch.stft, torch.istft, torch.complex, torch.polar, torch.view_as_complex, torch.view_as_real),
      ("stft", "istft"), note="complex numbers have no codes"),
    O("algebra", B.FLOAT, (), (torch.linalg.inv, torch.linalg.solve, torch.linalg.svd, torch.linalg.eigh, torch.linalg.cholesky, torch.linalg.qr, torch.linalg.det, *named("inverse cholesky svd det trace")[0]),
      ("inverse", "cholesky", "svd", "det", "trace"), note="its steps need more than 8 bits"),
    O("loss", B.FLOAT, tuple(value for name, value in vars(nn).items() if name.endswith("Loss")), tuple(value for name, value in vars(F).items() if name.endswith(("_loss", "cross_entropy", "_with_logits", "kl_div"))),
      note="a loss is for training, and is exact"),
    # ---- no floating tensor comes out
    O("attribute", B.SHARE, (), (getattr,), inputs=(0,), holds=gives_values, otherwise=B.PLAIN),
    O("size", B.PLAIN, (), (len, torch.numel), ("size", "dim", "ndimension", "numel", "nelement", "get_device")),
    O("property", B.PLAIN, (), (require_value, require_size), ("stride", "is_contiguous", "is_floating_point", "is_complex", "item", "tolist", "element_size", "storage_offset", "data_ptr")),
    O("integer", B.PLAIN, (), (torch.arange, torch.randint, torch.randperm, torch.tril_indices, torch.triu_indices, torch.searchsorted, torch.bucketize, F.one_hot, *named(INTEGERS)[0]),
      (*named(INTEGERS)[1], "long", "int", "short", "byte", "char", "bool")),
    O("comparison", B.PLAIN, (), (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.and_, operator.or_, operator.xor, operator.not_, operator.invert,
                                  operator.floordiv, operator.mod, operator.lshift, operator.rshift, torch.sym_not, torch.sym_max, torch.sym_min, torch.isin, *named(COMPARISONS)[0]),
      named(COMPARISONS)[1]),
)  # fmt: skip

MEANS = ("avg_pool", "mean", "interpolate")  # rows that weigh numbers which have one scale

# rows that, clips aside, give k times as much of k times as much, for each k > 0
PROPORTIONAL = (
    *(*MEANS, "leaky_relu", "prelu", "rrelu", "abs", "max_pool", "extreme", "sum"),
    *("cat", "pad", "shape", "unfold", "split", "getitem", "attribute", "same"),
)

BENT = ("gelu", "silu", "mish", "hardswish", "leaky_relu", "elu", "softplus")  # rows with long tails above zero

UNKNOWN = O("unknown", B.FLOAT, note="not in edgeq's table of operators")

DATA = ("input", "other", "mat2", "vec", "tensor", "value", "src", "source", "values", "x1", "x2")  # names of arguments

_BY_MODULE = {cls: row for row in TABLE for cls in row.modules}
_BY_FUNCTION = {function: row for row in TABLE for function in row.functions}
_BY_METHOD = {method: row for row in TABLE for method in row.methods}


def operator_of(node: fx.Node, module: nn.Module | None) -> Operator:
    """The row of a call; UNKNOWN for one that the table does not hold."""
    if module is not None:
        return _BY_MODULE.get(torch_class(module), UNKNOWN)
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


def data_inputs(node: fx.Node, module: nn.Module | None) -> list[fx.Node]:
    """The nodes whose values an operation computes with, as opposed to its parameters and sizes."""
    positions = operator_of(node, module).inputs
    if positions is None:
        return list(node.all_input_nodes)
    names = DATA if node.op != "call_module" else ("input", "x1", "x2")
    values = [node.args[position] for position in positions if position < len(node.args)]
    values += [node.kwargs[name] for name in names if name in node.kwargs]
    found: list[fx.Node] = []
    fx.node.map_arg(values, found.append)
    return found
