"""A layer of the graph as what folding needs of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from edgeq.graph.conditions import PARAMETERS, argument
from edgeq.graph.fuse import NORMS
from edgeq.graph.operators import Behaviour, behaviour_of, data_inputs
from edgeq.graph.passes.draft import Draft
from edgeq.modules.folding import Folds
from edgeq.modules.functional_norm import FrozenNorm, FunctionalNorm
from edgeq.modules.operation import Operation
from edgeq.modules.torch_class import torch_class

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CALLED_NORMS = (*BATCH_NORMS, nn.SyncBatchNorm, FunctionalNorm, FrozenNorm)


@dataclass(frozen=True)
class Layer:
    """A call of a layer with weights: what it reads, does, and does it with."""

    source: fx.Node
    operation: Operation
    weight: Tensor
    bias: Tensor | None

    @property
    def norms(self) -> tuple[type[nn.Module], ...]:
        """The classes of batch norms over its channels."""
        return NORMS["linear" if self.operation.function == "linear" else self.operation.function[-2:]]

    @property
    def inputs(self) -> int:
        """How many channels it reads."""
        of_group = self.weight.shape[self.operation.input_axis]
        return of_group if self.operation.transposed else of_group * self.operation.groups

    @property
    def outputs(self) -> int:
        """How many channels it gives."""
        return self.operation.channels(self.weight)


def layer_of(draft: Draft, node: fx.Node) -> Layer | None:
    """The layer that a node calls; None for another operation, and for a layer that stays in float."""
    module = draft.module(node)
    if not node.op.startswith("call") or behaviour_of(node, module) is not Behaviour.LAYER:
        return None
    if draft.kind(node) not in ("conv", "conv_transpose", "linear") or not draft.is_quantized(node):
        return None
    source = data_inputs(node, module)[0]
    if module is not None:
        return Layer(source, Operation.of_module(module), module.weight, module.bias)
    parameters = [argument(node, at, name) for at, name in PARAMETERS]
    values: list[Any] = [value if value is None else draft.value(value, {}) for value in parameters]
    return Layer(source, Operation.of_call(node), *values)


def sample_of(draft: Draft, layer: Layer) -> Tensor:
    """Random numbers of a shape that a layer reads."""
    if layer.operation.function == "linear":
        return draft.sample(4, layer.inputs)
    options, kernel = dict(layer.operation.options), layer.weight.shape[2:]
    dilation: Any = options["dilation"]
    dilations = (dilation,) * len(kernel) if isinstance(dilation, int) else dilation
    return draft.sample(2, layer.inputs, *(d * (k - 1) + 3 for d, k in zip(dilations, kernel, strict=True)))


def as_folded(layer: Layer, folds: Folds, x: Tensor) -> Tensor:
    """What a layer gives with its neighbours folded into its weight and bias."""
    return layer.operation(x, *folds.fold(layer.operation, layer.weight, layer.bias))


def norm_of(draft: Draft, node: fx.Node) -> Any:
    """The batch norm that a node calls with one value, over statistics that it keeps; None for anything else."""
    module = draft.module(node)
    calls = torch_class(module) in CALLED_NORMS and len(node.args) == 1 and not node.kwargs
    return module if calls and module.running_var is not None and draft.is_quantized(node) else None
