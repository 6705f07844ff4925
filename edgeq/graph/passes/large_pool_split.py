"""A global average pool over many positions as two pools."""

from __future__ import annotations

import itertools
import logging
import math
from typing import Any

from torch import fx, nn
from torch.nn import functional

from edgeq.errors import SpecError
from edgeq.graph.passes.draft import Draft
from edgeq.graph.passes.registry import Stage, rewrite

logger = logging.getLogger(__name__)

FIRST: dict[int, Any] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@rewrite("large_pool_split", Stage.FINISH, "a large global average pool -> two average pools", default=False)
def large_pool_split(draft: Draft, *, positions: int = 512) -> None:
    """Some devices cannot average more than so many `positions` at once: a first pool averages blocks that divide
    the map, a second one what is left. The sizes are those of the example inputs.

    Raises SpecError without example inputs, and for `positions` that is no integer of at least 2.
    """
    if isinstance(positions, bool) or not isinstance(positions, int) or positions < 2:
        raise SpecError(f"positions of large_pool_split must be an integer of at least 2, got {positions!r}.")
    if not draft.shapes:
        raise SpecError("large_pool_split needs example_inputs: the size of what is pooled is not in the graph.")
    for node in draft.nodes():
        source: Any = node.args[0] if node.args else None
        if not _is_global(draft, node) or source not in draft.shapes or not draft.is_quantized(node):
            continue
        name = "".join(filter(str.isdigit, _called(draft, node)))
        sizes = tuple(draft.shapes[source][-int(name) :])
        if math.prod(sizes) <= positions:
            continue
        block = _block(sizes, positions)
        if block is None:
            logger.warning("large_pool_split: no block of at most %d positions divides %s.", positions, sizes)
            continue
        x = draft.sample(2, 3, *sizes)
        before = draft.value(node, {source: x})
        first = draft.insert(node, source, FIRST[len(sizes)], (source, block), f"{node.name}_blocks")
        node.replace_input_with(source, first)
        what = f"a global average pool of {sizes} -> one of blocks {block} and one of the rest"
        draft.record(node, what, before, draft.value(node, {source: x}))


def _called(draft: Draft, node: fx.Node) -> str:
    module = draft.module(node)
    return type(module).__name__ if module is not None else getattr(node.target, "__name__", "")


def _is_global(draft: Draft, node: fx.Node) -> bool:
    """Whether a node averages a map to one position."""
    if draft.kind(node) != "avg_pool" or "adaptive" not in _called(draft, node).lower():
        return False
    module: Any = draft.module(node)
    size = module.output_size if isinstance(module, nn.Module) else (*node.args[1:], node.kwargs.get("output_size"))[0]
    sizes = size if isinstance(size, tuple | list) else (size,)
    return all(each == 1 for each in sizes)


def _block(sizes: tuple[int, ...], positions: int) -> tuple[int, ...] | None:
    """The block of divisors of the sizes that makes both pools as equal as can be, and none too large."""
    divisors = [[d for d in range(1, size + 1) if size % d == 0] for size in sizes]
    blocks = [(max(math.prod(b), math.prod(sizes) // math.prod(b)), b) for b in itertools.product(*divisors)]
    largest, block = min(blocks)
    return block if largest <= positions else None
