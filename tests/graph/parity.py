"""What most tests of the graph do: calibrate a small network, convert it, and compare bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import edgeq

AS_WRITTEN = dict.fromkeys(edgeq.rewrite_names(), False)  # the graph is quantized as the model's author wrote it


def images(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers; by default a batch (2, 3, 8, 8)."""
    return torch.randn(shape or (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed))


def calibrated(model: nn.Module, *inputs: Any, preset: Any = "WC8_AT8", **options: Any) -> edgeq.PTCFxModule:
    """The wrapped model after one calibration batch, in eval mode."""
    wrapped = edgeq.PTCFxModule(model, preset, **options).train()
    wrapped(*inputs)
    return wrapped.eval()


def leaves(value: Any) -> list[Any]:
    """What the tuples, lists and dicts of a network's output hold."""
    return pytree.tree_leaves(value)


@torch.no_grad()
def assert_exact(wrapped: edgeq.PTCFxModule | edgeq.QATFxModule, *inputs: Any) -> list[Any]:
    """The simulated outputs, after a check that the converted network gives the same, bit for bit."""
    simulated, converted = leaves(wrapped(*inputs)), leaves(wrapped.convert()(*inputs))
    assert len(simulated) == len(converted)
    for index, (one, other) in enumerate(zip(simulated, converted, strict=True)):
        if not isinstance(one, Tensor):
            assert one == other, f"output {index}"
            continue
        assert (one.dtype, one.shape) == (other.dtype, other.shape), f"output {index}"
        unequal = int((one != other).sum()) - int((one.isnan() & other.isnan()).sum())
        assert unequal == 0, f"output {index}: {unequal} of {one.numel()} differ"
    return simulated


@torch.no_grad()
def relative_error(found: Any, expected: Any) -> float:
    """The greatest, over all outputs, of the norm of the difference over the norm of what is expected."""
    pairs = [(a.float(), b.float()) for a, b in zip(leaves(found), leaves(expected), strict=True) if torch.is_tensor(a)]
    return max(float((a - b).norm() / b.norm().clamp(min=1e-9)) for a, b in pairs)


def group_of(wrapped: edgeq.PTCFxModule | edgeq.QATFxModule, name: str) -> str | None:
    """The quantizer that the value of a layer (by path) or of a node (by name) is quantized with."""
    network = wrapped.module
    for node in network.fx_graph.nodes:
        if node.name == name or (node.op == "call_module" and node.target == name):
            users = [str(user.target) for user in node.users]
            behind = [user for user in users if user.startswith("quantization.tensors.")]
            return network.groups.get(node.name) or (behind[0].rsplit(".", 1)[1] if behind else None)
    raise AssertionError(f"no node {name!r} in\n{network.fx_graph}")
