"""Which nodes become one: a layer with the batch norm and the activation behind it, any operation with its clip."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx, nn

from edgeq.graph.kinds import module_of
from edgeq.graph.operators import Behaviour, behaviour_of, data_inputs, operator_of
from edgeq.modules.affine import Affine
from edgeq.modules.functional_norm import FrozenNorm, FunctionalNorm
from edgeq.modules.norm_slice import NormSlice
from edgeq.modules.torch_class import torch_class

OF_ANY_RANK = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm, NormSlice, FunctionalNorm, FrozenNorm)
NORMS: dict[str, tuple[type[nn.Module], ...]] = {
    "1d": (nn.BatchNorm1d, *OF_ANY_RANK),
    "2d": (nn.BatchNorm2d, *OF_ANY_RANK),
    "3d": (nn.BatchNorm3d, *OF_ANY_RANK),
    "linear": (nn.BatchNorm1d, *OF_ANY_RANK),
}
FOLDS_FORWARD = "edgeq_folds_forward"  # key in a node's meta: a batch norm that the layer behind it takes in


@dataclass(frozen=True)
class Chain:
    """What one quantized operation stands for: `head` computes; `before` (a batch norm) stands in front of it, and
    `norm` (another), `affine` (numbers to multiply with and to add) and `clip` follow it.
    """

    head: fx.Node
    norm: fx.Node | None = None
    clip: fx.Node | None = None
    floor: float | None = None
    ceiling: float | None = None
    before: fx.Node | None = None
    affine: fx.Node | None = None

    @property
    def nodes(self) -> list[fx.Node]:
        """All of its nodes, in the order of the data."""
        parts = (self.before, self.head, self.norm, self.affine, self.clip)
        return [node for node in parts if node is not None]

    @property
    def tail(self) -> fx.Node:
        """The node whose value the chain produces."""
        return self.nodes[-1]


def chains(
    graph: fx.Graph, root: nn.Module, float_nodes: set[fx.Node], folds_norms: bool = True
) -> dict[fx.Node, Chain]:
    """The chain of each operation that computes, by head. Nodes in `float_nodes` take no part; batch norms only with
    `folds_norms`.
    """
    found: dict[fx.Node, Chain] = {}
    for node in graph.nodes:
        module = module_of(node, root)
        if node in float_nodes or not node.op.startswith("call"):
            continue
        behaviour = behaviour_of(node, module)
        if behaviour in (Behaviour.LAYER, Behaviour.MATMUL, Behaviour.OWN):
            is_layer = behaviour is Behaviour.LAYER and folds_norms
            chain = _layer_chain(node, module, root, float_nodes) if is_layer else Chain(node)
            found[node] = _with_clip(chain, root, float_nodes)
    for chain in list(found.values()):
        for node in chain.nodes:
            if node is not chain.head:
                found.pop(node, None)
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


def _layer_chain(node: fx.Node, module: nn.Module | None, root: nn.Module, float_nodes: set[fx.Node]) -> Chain:
    """A layer with what is folded into it."""
    before = data_inputs(node, module)[0]
    before_folds = FOLDS_FORWARD in before.meta and before not in float_nodes
    norm = _norm_of(node, module, root, float_nodes)
    affine = _only_user(norm or node, float_nodes)
    affine_folds = affine is not None and isinstance(module_of(affine, root), Affine)
    return Chain(node, norm, before=before if before_folds else None, affine=affine if affine_folds else None)


def _norm_of(node: fx.Node, module: nn.Module | None, root: nn.Module, float_nodes: set[fx.Node]) -> fx.Node | None:
    user = _only_user(node, float_nodes)
    norm = None if user is None else module_of(user, root)
    kind = _dimensions(node, module)
    if norm is None or torch_class(norm) not in NORMS[kind] or norm.running_var is None:
        return None
    channels = getattr(module, "out_channels", getattr(module, "out_features", norm.num_features))
    return user if channels == norm.num_features else None


def _dimensions(node: fx.Node, module: nn.Module | None) -> str:
    """The key of a layer in `NORMS`."""
    name = torch_class(module).__name__ if module is not None else getattr(node.target, "__name__", "")
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
    return chain if bounds is None else replace(chain, clip=user, floor=bounds[0], ceiling=bounds[1])
