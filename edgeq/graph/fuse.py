"""Which nodes become one: a layer with the batch norm and the activation behind it, any operation with its clip."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from edgeq.graph.kinds import module_of
from edgeq.graph.operators import Behaviour, behaviour_of, operator_of

NORMS: dict[str, tuple[type[nn.Module], ...]] = {
    "1d": (nn.BatchNorm1d, nn.SyncBatchNorm),
    "2d": (nn.BatchNorm2d, nn.SyncBatchNorm),
    "3d": (nn.BatchNorm3d, nn.SyncBatchNorm),
    "linear": (nn.BatchNorm1d, nn.SyncBatchNorm),
}


@dataclass(frozen=True)
class Chain:
    """What one quantized operation stands for: `head` computes, `norm` (a batch norm) and `clip` follow it."""

    head: fx.Node
    norm: fx.Node | None = None
    clip: fx.Node | None = None
    floor: float | None = None
    ceiling: float | None = None

    @property
    def tail(self) -> fx.Node:
        """The node whose value the chain produces."""
        return self.clip or self.norm or self.head


def chains(graph: fx.Graph, root: nn.Module, float_nodes: set[fx.Node]) -> dict[fx.Node, Chain]:
    """The chain of each operation that computes, by head. Nodes in `float_nodes` take no part."""
    found: dict[fx.Node, Chain] = {}
    for node in graph.nodes:
        module = module_of(node, root)
        if node in float_nodes or not node.op.startswith("call"):
            continue
        behaviour = behaviour_of(node, module)
        if behaviour in (Behaviour.LAYER, Behaviour.MATMUL, Behaviour.OWN):
            norm = _norm_of(node, module, root, float_nodes) if behaviour is Behaviour.LAYER else None
            found[node] = _with_clip(Chain(node, norm), root, float_nodes)
    for chain in list(found.values()):
        if chain.norm is not None:
            found.pop(chain.norm, None)
    absorbed = {chain.clip for chain in found.values()}
    for node in graph.nodes:
        if node not in absorbed and node not in float_nodes and _clips_off_the_grid(node, module_of(node, root)):
            found[node] = Chain(node)
    return found


def _clips_off_the_grid(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node clips at a bound that need not have a code in its input's range; zero always has one."""
    if not node.op.startswith("call") or behaviour_of(node, module) is not Behaviour.CLIP:
        return False
    bounds = operator_of(node, module).bounds
    return bounds is not None and any(bound not in (None, 0.0) for bound in bounds(node, module) or ())


def _only_user(node: fx.Node, float_nodes: set[fx.Node]) -> fx.Node | None:
    users = list(node.users)
    alone = len(users) == 1 and users[0].op.startswith("call") and users[0] not in float_nodes
    return users[0] if alone and users[0].args[:1] == (node,) else None


def _norm_of(node: fx.Node, module: nn.Module | None, root: nn.Module, float_nodes: set[fx.Node]) -> fx.Node | None:
    user = _only_user(node, float_nodes)
    norm = None if user is None else module_of(user, root)
    kind = _dimensions(node, module)
    if norm is None or type(norm) not in NORMS[kind] or norm.running_var is None:
        return None
    channels = getattr(module, "out_channels", getattr(module, "out_features", norm.num_features))
    return user if channels == norm.num_features else None


def _dimensions(node: fx.Node, module: nn.Module | None) -> str:
    """The key of a layer in `NORMS`."""
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", "")
    return name[-2:].lower() if name[-2:].lower() in NORMS else "linear"


def _with_clip(chain: Chain, root: nn.Module, float_nodes: set[fx.Node]) -> Chain:
    user = _only_user(chain.tail, float_nodes)
    if user is None:
        return chain
    module = module_of(user, root)
    row = operator_of(user, module)
    if behaviour_of(user, module) is not Behaviour.CLIP or row.bounds is None:
        return chain
    bounds = row.bounds(user, module)
    return chain if bounds is None else Chain(chain.head, chain.norm, user, *bounds)
