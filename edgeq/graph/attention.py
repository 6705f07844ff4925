"""Attention, written out in matrix products and a softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgeq.graph.decompose import decomposes, replaces
from edgeq.graph.masks import mask_scores

Value = Any  # a proxy of a tensor, or None


@replaces(functional.scaled_dot_product_attention)
def scaled_dot_product_attention(
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """Attention as two matrix products with a softmax between them."""
    if enable_gqa:
        groups = query.size(-3) // key.size(-3)
        key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
    scores = _scores(query, key, query.size(-1) ** -0.5 if scale is None else scale)
    if attn_mask is not None or is_causal:
        scores = mask_scores(scores, attn_mask, True, is_causal)
    weights = torch.softmax(scores, -1)
    # The caller drops nothing in evaluation, in which it is traced: the rate is that of its trace in training.
    weights = functional.dropout(weights, dropout_p, training=bool(dropout_p))
    return torch.matmul(weights, value)


def _scores(query: Value, key: Value, scale: Any) -> Value:
    """How well each key (..., keys, features) fits to each query (..., queries, features)."""
    return torch.matmul(query * scale, key.transpose(-2, -1))


def _has_extra_keys(module: nn.MultiheadAttention) -> bool:
    return module.bias_k is not None or module.add_zero_attn


@decomposes(nn.MultiheadAttention, unless=_has_extra_keys)
def multi_head_attention(
    module: nn.MultiheadAttention,
    query: Value,
    key: Value,
    value: Value,
    key_padding_mask: Value = None,
    need_weights: bool = True,
    attn_mask: Value = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Value, Value]:
    """`nn.MultiheadAttention`: queries, keys and values are three linear layers, each with a range of its own.
    `is_causal` is only a hint of what `attn_mask` is. All dimensions are counted so that there may be no batch.
    """
    heads, width = module.num_heads, module.head_dim
    inputs = (query, key, value) if module.batch_first else (x.transpose(0, -2) for x in (query, key, value))
    q, k, v = (
        functional.linear(x, weight, bias).unflatten(-1, (heads, width)).transpose(-3, -2)
        for x, (weight, bias) in zip(inputs, _projections(module), strict=True)
    )
    scores = _scores(q, k, width**-0.5)
    if attn_mask is not None:
        scores = mask_scores(scores, attn_mask, keeps=False)
    if key_padding_mask is not None:
        scores = mask_scores(scores, key_padding_mask.unsqueeze(-2).unsqueeze(-2), keeps=False)
    weights = torch.softmax(scores, -1)
    dropped = functional.dropout(weights, module.dropout, training=module.training) if module.dropout else weights
    output = module.out_proj(torch.matmul(dropped, v).transpose(-3, -2).flatten(-2))
    if not module.batch_first:
        output = output.transpose(0, -2)
    if not need_weights:
        return output, None
    return output, weights.mean(-3) if average_attn_weights else weights


def _projections(module: nn.MultiheadAttention) -> list[tuple[Value, Value]]:
    """Weight and bias of the linear layers of queries, keys and values: rows of one parameter where it holds all."""
    width = module.embed_dim
    rows = [slice(part * width, (part + 1) * width) for part in range(3)]
    bias = module.in_proj_bias
    biases = [None if bias is None else bias[part] for part in rows]
    if module.in_proj_weight is not None:
        return [(module.in_proj_weight[part], each) for part, each in zip(rows, biases, strict=True)]
    weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    return list(zip(weights, biases, strict=True))
