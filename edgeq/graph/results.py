"""The tensors inside of what a network takes or gives: those are the inputs and outputs of a file, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree


def tensors_in(value: Any) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Each tensor inside of dicts, lists, tuples and dataclasses, with the keys, numbers and fields that lead to it.
    What is no tensor, such as None or a size, is passed over.
    """
    for path, leaf in pytree.tree_flatten_with_path(value, is_leaf=dataclasses.is_dataclass)[0]:
        keys = tuple(_key(part) for part in path)
        if isinstance(leaf, Tensor):
            yield keys, leaf
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for field in dataclasses.fields(leaf):
                for inner, tensor in tensors_in(getattr(leaf, field.name)):
                    yield (*keys, field.name, *inner), tensor


def _key(part: Any) -> str:
    """Of a dict, a list or a named tuple."""
    return str(next(getattr(part, name) for name in ("key", "idx", "name") if hasattr(part, name)))


def has_names(value: Any) -> bool:
    """Whether a network gives its tensors by names of their own: a dict, a named tuple or a dataclass."""
    return isinstance(value, dict) or hasattr(value, "_fields") or dataclasses.is_dataclass(value)


def opened(result: Any) -> Any:
    """What a graph returns, with the fields of dataclasses and named tuples, which are made by calls, in the places of
    the calls.
    """

    def fields_of(node: fx.Node) -> Any:
        made: Any = node.target if node.op == "call_function" and isinstance(node.target, type) else None
        if not (dataclasses.is_dataclass(made) or hasattr(made, "_fields")):
            return node
        names = made._fields if hasattr(made, "_fields") else [field.name for field in dataclasses.fields(made)]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        return opened([given.get(name) for name in names])

    return fx.node.map_arg(result, fields_of)
