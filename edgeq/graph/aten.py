"""Operators of ATen, which torch.export records, as the functions and methods that edgeq's table knows.

Each function here takes the arguments of the ATen operator of its name, proxies of tensors among them, and calls
what a user would have called.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from edgeq.graph.attention import scaled_dot_product_attention

GRID_MODES = ("bilinear", "nearest", "bicubic")  # as ATen numbers them
GRID_PADDINGS = ("zeros", "border", "reflection")
END = 2**63 - 1  # how ATen says that a slice has no end
CHECKS = {
    *("_assert_scalar", "_assert_async", "_assert_tensor_metadata", "sym_constrain_range", "_check_is_size"),
    *("sym_constrain_range_for_size", "_functional_assert_async"),
}  # what export adds to see its assumptions hold
PLACES = ((torch.linalg, "linalg_"), (torch.fft, "fft_"), (torch.special, "special_"), (torch, ""), (F, ""))
DROPPED_KEYWORDS = ("pin_memory", "layout", "memory_format", "non_blocking", "implicit")

SPECIAL: dict[str, Callable[..., Any]] = {}


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    SPECIAL[function.__name__.strip("_")] = function
    return function


def raised(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What stands for a call of `target`; None for a check. PyTorch's own functions and methods of the same name take
    the same arguments, where they are not written in Python. What there is none for is called as it is.
    """
    if not isinstance(target, torch._ops.OpOverload):
        return _recorded(target, args, kwargs) if target.__module__ == "math" else target(*args, **kwargs)
    name = target._schema.name.split("::")[1]
    if name in CHECKS:
        return None
    kwargs = {key: value for key, value in kwargs.items() if key not in DROPPED_KEYWORDS and value is not None}
    if target.namespace != "aten":
        return _recorded(target, args, kwargs)
    if name.removesuffix("_") in SPECIAL and not hasattr(Tensor, name):
        return SPECIAL[name.removesuffix("_")](*args, **kwargs, **({"inplace": True} if name.endswith("_") else {}))
    if name in SPECIAL:
        return SPECIAL[name](*args, **kwargs)
    for place, prefix in PLACES:
        function = getattr(place, name.removeprefix(prefix), None) if name.startswith(prefix) else None
        if function is not None and not isinstance(function, FunctionType) and not name.endswith("_"):
            return function(*args, **kwargs)
    if hasattr(Tensor, name) and not isinstance(getattr(Tensor, name), FunctionType):
        return getattr(args[0], name)(*args[1:], **kwargs)
    return _recorded(target, args, kwargs)


def _recorded(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of `target` itself, which does not know proxies."""
    proxies = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, fx.Proxy)]
    if not proxies:
        return target(*args, **kwargs)
    return proxies[0].tracer.create_proxy("call_function", target, args, kwargs)


# ---- layers and what follows them


@_named
def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    return F.linear(x, weight, bias)


@_named
def _embedding(weight: Any, indices: Any, padding_idx: int = -1, *_: Any) -> Any:
    return F.embedding(indices, weight, None if padding_idx < 0 else padding_idx)


@_named
def _batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, train: bool, momentum: float, eps: float, _: Any
) -> Any:
    return F.batch_norm(x, mean, var, weight, bias, train, momentum, eps)


@_named
def _layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Any:
    return F.layer_norm(x, shape, weight, bias, eps)


@_named
def _group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Any:
    return F.group_norm(x, groups, weight, bias, eps)


def _dropout(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, p, train, **kwargs: function(x, p, training=train, **kwargs)


for _name, _function in (
    ("dropout", F.dropout),
    ("feature_dropout", F.dropout2d),  # of any rank: it drops what lies at one place of the first two dimensions
    ("alpha_dropout", F.alpha_dropout),
    ("feature_alpha_dropout", F.feature_alpha_dropout),
):
    SPECIAL[_name] = _dropout(_function)


@_named
def _instance_norm(
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    _: Any,
) -> Any:
    return F.instance_norm(x, mean, var, weight, bias, use_input_stats, momentum, eps)


@_named
def _scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Any:
    return scaled_dot_product_attention(*args, **kwargs)


# ---- activations: the Python functions, which are the ones that the table holds


for _name in (
    *("gelu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "softplus", "relu6", "celu"),
    *("selu", "glu", "threshold", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "pad", "pixel_shuffle", "pixel_unshuffle"),
):
    SPECIAL[_name] = getattr(F, _name)
SPECIAL["log_sigmoid"] = F.logsigmoid


@_named
def _elu(x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0, **kwargs: Any) -> Any:
    if scale != 1 or input_scale != 1:
        return _recorded(torch.ops.aten.elu.default, (x, alpha, scale, input_scale), {})
    return F.elu(x, alpha, **kwargs)


@_named
def _rrelu(x: Any, lower: float = 1 / 8, upper: float = 1 / 3, train: bool = False, *_: Any, **kwargs: Any) -> Any:
    return F.rrelu(x, lower, upper, train, **kwargs)


def _values_and_places(function: Callable[..., Any]) -> Callable[..., Any]:
    """As ATen gives both; whoever reads only the values calls for no places."""
    return lambda *args: (function(*args), function(*args, return_indices=True)[1])


for _rank in (1, 2, 3):
    SPECIAL[f"adaptive_max_pool{_rank}d"] = _values_and_places(getattr(F, f"adaptive_max_pool{_rank}d"))
    SPECIAL[f"max_pool{_rank}d_with_indices"] = _values_and_places(getattr(F, f"max_pool{_rank}d"))
    SPECIAL[f"atleast_{_rank}d"] = getattr(torch, f"atleast_{_rank}d")


@_named
def _softmax(x: Any, dim: int, dtype: Any = None) -> Any:
    return torch.softmax(x, dim) if dtype is None else torch.softmax(x, dim, dtype=dtype)


@_named
def _constant_pad_nd(x: Any, pad: Any, value: float = 0.0) -> Any:
    return F.pad(x, pad, "constant", value)


# ---- shapes and parts


@_named
def _slice(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1) -> Any:
    end = None if isinstance(end, int) and end >= END else end
    starts = start is None or (isinstance(start, int) and start == 0)
    if starts and end is None and isinstance(step, int) and step == 1:
        return x
    part = slice(None if starts else start, end, None if isinstance(step, int) and step == 1 else step)
    if dim < 0:
        return x[(..., part, *[slice(None)] * (-dim - 1))]
    return x[(*[slice(None)] * dim, part)]


@_named
def _index(x: Any, indices: list[Any]) -> Any:
    return x[tuple(slice(None) if index is None else index for index in indices)]


@_named
def _split(x: Any, size: Any, dim: int = 0) -> Any:
    return torch.split(x, size, dim)


@_named
def _unfold(x: Any, dim: int, size: int, step: int) -> Any:
    return x.unfold(dim, size, step)


@_named
def _transpose(x: Any, first: int, second: int) -> Any:
    return x.transpose(first, second)


@_named
def _t(x: Any) -> Any:
    return x.t()


@_named
def _broadcast_tensors(tensors: list[Any]) -> Any:
    return torch.broadcast_tensors(*tensors)


@_named
def _meshgrid(tensors: list[Any], indexing: str = "ij") -> Any:
    return torch.meshgrid(*tensors, indexing=indexing)


@_named
def _view(x: Any, size: Any) -> Any:
    return x.view(size) if isinstance(size, torch.dtype) else x.reshape(size)


@_named
def _grid_sampler(x: Any, grid: Any, mode: int, padding: int, align: bool) -> Any:
    return F.grid_sample(x, grid, GRID_MODES[mode], GRID_PADDINGS[padding], align)


@_named
def _affine_grid_generator(theta: Any, size: Any, align: bool) -> Any:
    return F.affine_grid(theta, size, align)


@_named
def _im2col(x: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Any:
    return F.unfold(x, kernel, dilation, padding, stride)


@_named
def _col2im(x: Any, size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Any:
    return F.fold(x, size, kernel, dilation, padding, stride)


@_named
def _to(x: Any, *args: Any, **kwargs: Any) -> Any:
    if args and isinstance(args[0], Tensor | fx.Proxy):
        return x.type_as(args[0])
    return x.to(*[value for value in args if isinstance(value, torch.dtype | torch.device)], **kwargs)


@_named
def _sym_size(x: Any, dim: int) -> Any:
    return x.size(dim)


@_named
def _alias(x: Any) -> Any:
    return x


@_named
def _mT(x: Any) -> Any:  # noqa: N802 - named as the operator
    return x.transpose(-2, -1)


@_named
def _numpy_T(x: Any) -> Any:  # noqa: N802
    return x.T


SPECIAL["mH"] = _mT
SPECIAL["split_with_sizes"] = _split
SPECIAL["_to_copy"] = _to
SPECIAL["lift_fresh_copy"] = SPECIAL["lift_fresh"] = _alias


def _interpolate(mode: str) -> Callable[..., Any]:
    def resize(x: Any, size: Any, *rest: Any) -> Any:
        *align, factors = rest
        corners = bool(align[0]) if align and mode not in ("nearest", "nearest-exact") else None
        factors = factors if size is None else None
        return F.interpolate(x, size, factors, mode, corners)

    return resize


for _name, _mode in (
    *((f"upsample_nearest{rank}d", "nearest") for rank in (1, 2, 3)),
    *((f"_upsample_nearest_exact{rank}d", "nearest-exact") for rank in (1, 2, 3)),
    *(("upsample_linear1d", "linear"), ("upsample_bilinear2d", "bilinear"), ("upsample_trilinear3d", "trilinear")),
    ("upsample_bicubic2d", "bicubic"),
):
    SPECIAL[_name] = _interpolate(_mode)


# ---- arithmetic


@_named
def _einsum(equation: str, operands: list[Any], **_: Any) -> Any:
    return torch.einsum(equation, *operands)


@_named
def _tensordot(x: Any, y: Any, dims: Any, other_dims: Any) -> Any:
    return torch.tensordot(x, y, (dims, other_dims))


@_named
def _cdist(x: Any, y: Any, p: float = 2.0, *_: Any) -> Any:
    return torch.cdist(x, y, p)


@_named
def _rsub(x: Any, other: Any, alpha: Any = 1) -> Any:
    return other - x if alpha == 1 else other - x * alpha


for _name in ("add", "sub", "mul", "div"):
    SPECIAL[_name] = getattr(torch, _name)
SPECIAL["pow"] = operator.pow
