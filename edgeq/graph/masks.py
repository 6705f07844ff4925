"""Masks of attention scores as one operation, whatever their type is: tracing cannot know it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which given a value that is being traced is recorded as one call, and not looked into."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        proxies = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, fx.Proxy)]
        if proxies:
            return proxies[0].tracer.create_proxy("call_function", call, args, kwargs)
        return function(*args, **kwargs)

    return call


@recorded
def mask_scores(scores: Tensor, mask: Tensor | None, keeps: bool, is_causal: bool = False) -> Tensor:
    """Attention scores (..., queries, keys) without the pairs that are masked.

    A floating mask is added. A boolean one says where to look (`keeps`) or where not to; a masked score becomes
    the least number that there is, which has no share in a softmax. It is finite, because a query that may look
    nowhere would get NaN from infinite ones, and spoil the range of all others; it looks everywhere alike instead.
    `is_causal` masks the keys that come after a query.
    """
    least = torch.finfo(scores.dtype).min
    if is_causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(visible.logical_not(), least)
    if mask is None:
        return scores
    if mask.dim() == 3 and scores.dim() == 4 and mask.shape[0] == scores.shape[0] * scores.shape[1]:
        mask = mask.reshape(scores.shape)  # one for each head of each item, as nn.MultiheadAttention takes them
    if mask.is_floating_point():
        return scores + mask
    return scores.masked_fill(mask.logical_not() if keeps else mask, least)
