"""Numbers that mark places rather than being values there: the -inf, -1e4 or finfo.min of a masked attention.

No range may hold them: one such number would leave a single code to all others. What holds them stays float, and so
does what a mask is made of; what they are added to is quantized as ever.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx, nn

from edgeq.graph.conditions import argument
from edgeq.graph.kinds import attribute, module_of
from edgeq.graph.operators import Behaviour, behaviour_of, data_inputs, operator_of

LEAST_MARK = 1e4  # no activation is as great

HOLDS = "it holds numbers that mark places, which no range may hold"
MAKES = "a mask is made of it, and nothing else"

ARITHMETIC = ("add", "sub", "mul", "div", "neg", "put", "masked_fill", "scatter")  # what is marked stays marked there


def marked(graph: fx.Graph, root: nn.Module) -> dict[fx.Node, str]:
    """The nodes that marks keep out of quantization, each with the reason."""
    found = dict.fromkeys(_mask_inputs(graph, root), HOLDS)
    makers: set[fx.Node] = set()
    for node in graph.nodes:
        if _makes_marks(node, root):
            makers.add(node)
        elif not _keeps_marks(node, root) or not any(source in found for source in _data(node, root)):
            continue
        found[node] = HOLDS
    for node in reversed(graph.nodes):
        if node not in found and _is_mask_arithmetic(node, root, makers, found):
            found[node] = MAKES
    return found


def _data(node: fx.Node, root: nn.Module) -> list[fx.Node]:
    return data_inputs(node, module_of(node, root)) if node.op.startswith("call") else []


def _makes_marks(node: fx.Node, root: nn.Module) -> bool:
    """Whether marks come in here: from the program, as a number or as a tensor that is no parameter."""
    if node.op == "get_attr":
        value = attribute(root, str(node.target))
        is_constant = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
        return is_constant and value.is_floating_point() and bool((value.abs() >= LEAST_MARK).any())
    if not node.op.startswith("call"):
        return False
    module = module_of(node, root)
    row = operator_of(node, module)
    numbers = [argument(node, *place) for place in row.fills] if module is None else [getattr(module, "value", 0)]
    large = any(isinstance(number, int | float) and abs(number) >= LEAST_MARK for number in numbers)
    return row.name == "mask" or (bool(row.fills) and large)


def _keeps_marks(node: fx.Node, root: nn.Module) -> bool:
    if not node.op.startswith("call"):
        return False
    module = module_of(node, root)
    return behaviour_of(node, module) is Behaviour.SHARE or operator_of(node, module).name in ARITHMETIC


def _is_mask_arithmetic(node: fx.Node, root: nn.Module, makers: set[fx.Node], found: dict[fx.Node, str]) -> bool:
    """Whether a node does nothing but prepare what is then multiplied to be a mask, as in ``(1 - mask) * -1e4``."""
    if not node.op.startswith("call") or not node.users or not _keeps_marks(node, root):
        return False
    scaled = [user for user in node.users if user in makers and operator_of(user, module_of(user, root)).name == "mul"]
    prepared = [user for user in node.users if found.get(user) == MAKES]
    return len(scaled) + len(prepared) == len(node.users)


def _mask_inputs(graph: fx.Graph, root: nn.Module) -> set[fx.Node]:
    """The inputs of the network that are masks to be added: all that is done with one, other than to move it, is to
    add it to scores that a softmax takes, and the scores are computed.
    """
    additions = set(_score_additions(graph, root))
    masks = set()
    for node in graph.nodes:
        readers = list(_readers(node, root)) if node.op == "placeholder" else []
        if readers and all(user in additions and _others_are_computed(user, root) for user in readers):
            masks.add(node)
    return masks


def _score_additions(graph: fx.Graph, root: nn.Module) -> Iterator[fx.Node]:
    for node in graph.nodes:
        if node.op.startswith("call") and operator_of(node, module_of(node, root)).name in ("softmax", "log_softmax"):
            pending = _data(node, root)
            while pending:
                source = pending.pop()
                if _is_row(source, root, "add"):
                    yield source
                elif _moves(source, root):
                    pending += _data(source, root)


def _readers(node: fx.Node, root: nn.Module) -> Iterator[fx.Node]:
    """Who reads a value, wherever it was moved to; what asks only for its size does not."""
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        users = pending.pop().users.keys() - seen
        seen |= users
        for user in users:
            if _moves(user, root):
                pending.append(user)
            elif not user.op.startswith("call") or behaviour_of(user, module_of(user, root)) is not Behaviour.PLAIN:
                yield user


def _others_are_computed(addition: fx.Node, root: nn.Module) -> bool:
    def origin(node: fx.Node) -> fx.Node:
        while _moves(node, root) and _data(node, root):
            node = _data(node, root)[0]
        return node

    return any(origin(source).op.startswith("call") for source in _data(addition, root))


def _moves(node: fx.Node, root: nn.Module) -> bool:
    return node.op.startswith("call") and behaviour_of(node, module_of(node, root)) is Behaviour.SHARE


def _is_row(node: fx.Node, root: nn.Module, name: str) -> bool:
    return node.op.startswith("call") and operator_of(node, module_of(node, root)).name == name
