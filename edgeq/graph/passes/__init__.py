"""Rewrites of the graph before quantization: one file an idea. Importing the package registers all of them."""

from edgeq.graph.passes import (
    activations,
    identity_removal,
    large_pool_split,
    layer_norm_decomposed,
    lone_norm_to_conv,
    mean_to_pool,
    norm_after_concat,
    norm_before_layer,
    scalars,
    slices,
)
from edgeq.graph.passes.changes import Change, Changes
from edgeq.graph.passes.registry import REWRITES, Wanted, rewrite_names
from edgeq.graph.passes.run import measure, rewrite_graph

__all__ = [
    "REWRITES",
    "Change",
    "Changes",
    "Wanted",
    "activations",
    "identity_removal",
    "large_pool_split",
    "layer_norm_decomposed",
    "lone_norm_to_conv",
    "mean_to_pool",
    "measure",
    "norm_after_concat",
    "norm_before_layer",
    "rewrite_graph",
    "rewrite_names",
    "scalars",
    "slices",
]
