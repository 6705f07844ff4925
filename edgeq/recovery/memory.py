"""Which calls of a network read which parameters, so that what several read is not changed for the sake of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, fx

from edgeq.graph.kinds import attribute, module_of
from edgeq.modules.layer import QuantizedLayer
from edgeq.modules.layers import Owner
from edgeq.recovery.sources import NormSource

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule

Span = tuple[int, int, int]  # a storage, and where in it a tensor's first element lies and its last one ends


class Memory:
    """The parameters of a prepared network by the memory that they lie in: rows of one that several layers share, each
    for itself, are parameters of their own.
    """

    def __init__(self, network: PreparedModule) -> None:
        self.saved = {
            tensor.untyped_storage().data_ptr()
            for tensor in network.state_dict().values()
            if isinstance(tensor, Tensor)
        }
        self.readers: list[tuple[Span, fx.Node]] = []
        for node in network.fx_graph.nodes:
            spans = [span_of(tensor) for tensor in _read(node, network) if tensor is not None and tensor.numel() > 0]
            self.readers += [(span, node) for span in spans]

    def obstacle(self, tensors: list[Tensor]) -> str:
        """Why some tensors cannot be changed for one of those who read them; empty where they can."""
        if any(tensor.untyped_storage().data_ptr() not in self.saved for tensor in tensors):
            return "its parameters are computed"
        return "it shares parameters with another call" if any(map(self._is_shared, tensors)) else ""

    def _is_shared(self, tensor: Tensor) -> bool:
        storage, start, stop = span_of(tensor)
        spans = ((*span, node) for span, node in self.readers)
        return len({node for other, low, high, node in spans if other == storage and low < stop and start < high}) > 1


def span_of(tensor: Tensor) -> Span:
    """Where a tensor lies."""
    first = int(tensor.storage_offset())
    last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.untyped_storage().data_ptr(), first, int(last) + 1


def _read(node: fx.Node, network: PreparedModule) -> list[Tensor | None]:
    """What a node reads of the network's parameters and buffers."""
    if node.op == "get_attr":
        value = attribute(network.tree, str(node.target))
        return [value] if isinstance(value, Tensor) else []
    module = module_of(node, network.tree)
    if module is None:
        return []
    tensors: list[Tensor | None] = [*module.parameters(), *module.buffers()]
    if isinstance(module, QuantizedLayer):
        tensors += [module.weight, module.bias, *module.site.tensors]
    elif isinstance(module, NormSource.KINDS):
        tensors += [module.weight, getattr(module, "bias", None)]
    owner = getattr(module, "owner", None)
    if isinstance(owner, Owner):
        tensors.append(owner.weight_now)
    return tensors
