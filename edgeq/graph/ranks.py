"""How many dimensions values have, and how many channels, as far as a graph tells without being run."""

from __future__ import annotations

import re

import torch
from torch import fx, nn

from edgeq.graph.kinds import module_of
from edgeq.graph.operators import data_inputs, operator_of
from edgeq.modules.operation import Operation

MAPS = ("conv", "conv_transpose", "avg_pool", "max_pool")  # their name tells how many dimensions a map has
ELEMENTWISE = {
    *(
        "relu",
        "relu6",
        "hardtanh",
        "clamp",
        "clamp_min",
        "clamp_max",
        "gelu",
        "silu",
        "mish",
        "hardswish",
        "leaky_relu",
    ),
    *("elu", "softplus", "prelu", "sigmoid", "hardsigmoid", "tanh", "softmax", "neg", "same", "affine"),
}
SAME = {*ELEMENTWISE, "batch_norm", "layer_norm", "group_norm", "instance_norm", "linear", "pad", "interpolate", "cat"}
COMBINING = ("add", "sub", "mul", "div", "maximum")


class Ranks:
    """Looked up by node; None where the graph does not tell. `shapes` of some nodes may be known from a run."""

    def __init__(self, graph: fx.Graph, root: nn.Module, shapes: dict[fx.Node, torch.Size]) -> None:
        self.root = root
        self.known: dict[fx.Node, int | None] = {}
        for node in graph.nodes:
            self.known[node] = len(shapes[node]) if node in shapes else self._rank(node)

    def __getitem__(self, node: fx.Node) -> int | None:
        return self.known.get(node)

    def _rank(self, node: fx.Node) -> int | None:
        if not node.op.startswith("call"):
            return None
        module = module_of(node, self.root)
        row = operator_of(node, module).name
        called = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        dimensions = re.search(r"([123])d", called)
        if dimensions and (row in MAPS or (row == "batch_norm" and dimensions[1] != "1")):
            return int(dimensions[1]) + 2
        sources = [self.known.get(source) for source in data_inputs(node, module)]
        if row == "shape" and called.lower() == "flatten":
            return self._flattened(node, module)
        if not sources or any(rank is None for rank in sources) or called == "stack":
            return None
        if row in SAME:
            return sources[0]
        return max(rank for rank in sources if rank is not None) if row in COMBINING else None

    def _flattened(self, node: fx.Node, module: nn.Module | None) -> int | None:
        """Flattening from dimension 1 on gives a matrix."""
        args = dict(zip(("input", "start_dim", "end_dim"), node.args, strict=False)) | dict(node.kwargs)
        start, end = args.get("start_dim", 0), args.get("end_dim", -1)
        if isinstance(module, nn.Flatten):
            start, end = module.start_dim, module.end_dim
        return 2 if (start, end) == (1, -1) else None

    def channels(self, node: fx.Node) -> tuple[int, int] | None:
        """The number of channels of a value that a layer has made, whatever was done to each element since, and the
        axis, counted from the last, that they lie along.
        """
        while node.op.startswith("call"):
            module = module_of(node, self.root)
            row = operator_of(node, module).name
            if row in ("conv", "conv_transpose", "linear") and module is not None:
                operation = Operation.of_module(module)
                return operation.channels(module.weight), operation.channel_axis  # type: ignore[arg-type]
            sources = data_inputs(node, module)
            with_numbers = row in COMBINING and len(sources) == 1
            if not sources or (row not in (*ELEMENTWISE, "batch_norm") and not with_numbers):
                return None
            node = sources[0]
        return None
