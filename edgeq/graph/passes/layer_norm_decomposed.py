"""A layer norm as its normalization, a product and a sum."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

from torch import fx, nn

from edgeq.graph.passes.draft import Draft
from edgeq.graph.passes.registry import Stage, rewrite
from edgeq.graph.places import PLACE
from edgeq.modules.normalization import Normalization
from edgeq.modules.torch_class import torch_class
from edgeq.spec import Place


@rewrite("layer_norm_decomposed", Stage.REPLACE, "LayerNorm -> normalization, times weight, plus bias", default=False)
def layer_norm_decomposed(draft: Draft) -> None:
    """The normalization is one block in float; the products with the weight and the sums with the bias, where there
    are any, are quantized element by element. TI's importer takes this form and no other.
    """
    for node in draft.nodes():
        if draft.kind(node) != "layer_norm" or not draft.is_quantized(node):
            continue
        found = _of_module(draft, node) if node.op == "call_module" else _of_call(node)
        if found is None:
            continue
        source, shape, weight, bias, eps = found
        x = draft.sample(4, *shape)
        before = draft.value(node, {source: x})
        path = draft.install(f"{node.name}_normalization", Normalization(len(shape), eps))
        steps = [(operator.mul, weight), (operator.add, bias)]
        value = draft.insert(node, node, path, (source,), f"{node.name}_normalization")
        for function, parameter in steps:
            if parameter is not None:
                value = draft.insert(node, value, function, (value, parameter), f"{node.name}_{function.__name__}")
        node.replace_all_uses_with(value)
        parts = ", ".join(["normalization", *(f.__name__ for f, parameter in steps if parameter is not None)])
        draft.record(node, f"a layer norm over {tuple(shape)} -> {parts}", before, draft.value(value, {source: x}))
        draft.erase([node])


def _of_module(draft: Draft, node: fx.Node) -> tuple[Any, ...] | None:
    module: Any = draft.module(node)
    if torch_class(module) is not nn.LayerNorm or len(node.args) != 1:
        return None
    parameters = []
    for name in ("weight", "bias"):
        parameter = None
        if getattr(module, name, None) is not None:
            with draft.graph.inserting_before(node):
                parameter = draft.graph.get_attr(f"{node.target}.{name}")
            place: Place = node.meta[PLACE]
            parameter.meta[PLACE] = replace(place, name=f"{place.name}.{name}")
        parameters.append(parameter)
    return node.args[0], module.normalized_shape, *parameters, module.eps


def _of_call(node: fx.Node) -> tuple[Any, ...] | None:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    values: dict[str, Any] = {"weight": None, "bias": None, "eps": 1e-5}
    values |= dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    shape: Any = values.get("normalized_shape")
    fixed = isinstance(shape, tuple | list) and all(type(size) is int for size in shape)
    if not fixed or any(isinstance(values[name], fx.Node) and values[name].op != "get_attr" for name in names[2:4]):
        return None
    return tuple(values[name] for name in names)
