"""How many dimensions and channels values have, as far as a graph tells without being run."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeq.graph.ranks import Ranks


def ranks_of(call, *modules, shapes=None):
    """The ranks of the graph of ``call(modules, x)``, and its last value."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(modules)

        def forward(self, x):
            return call(self.parts, x)

    model = Net()
    graph = fx.Tracer().trace(model)
    given = {node: shapes for node in graph.nodes if node.op == "placeholder"} if shapes else {}
    last = [node for node in graph.nodes if node.op != "output"][-1]
    return Ranks(graph, model, given), last


CONV = nn.Conv2d(3, 6, 1)


@pytest.mark.parametrize(("call", "modules", "rank"), [
    (lambda m, x: m[0](x), [CONV], 4),
    (lambda m, x: F.conv1d(x, torch.ones(2, 2, 1)), [], 3),
    (lambda m, x: m[0](x), [nn.ConvTranspose3d(2, 2, 1)], 5),
    (lambda m, x: torch.relu(m[1](m[0](x))).clamp(0, 1), [CONV, nn.BatchNorm2d(6)], 4),
    (lambda m, x: m[0](x), [nn.BatchNorm2d(6)], 4),
    (lambda m, x: m[0](x), [nn.BatchNorm1d(6)], None),
    (lambda m, x: m[0](x), [nn.Linear(3, 4)], None),
    (lambda m, x: F.max_pool2d(x, 2), [], 4),
    (lambda m, x: m[0](x) * 2 + 1, [CONV], 4),
    (lambda m, x: m[0](x) + m[0](x).sigmoid(), [CONV], 4),
    (lambda m, x: m[0](x) + x, [CONV], None),
    (lambda m, x: torch.cat([m[0](x), m[0](x)], 1), [CONV], 4),
    (lambda m, x: torch.stack([m[0](x), m[0](x)], 1), [CONV], None),
    (lambda m, x: x.flatten(1), [], 2),
    (lambda m, x: m[0](x), [nn.Flatten()], 2),
    (lambda m, x: m[1](m[0](x)), [nn.Flatten(), nn.Linear(3, 4)], 2),
    (lambda m, x: x.flatten(2), [], None),
    (lambda m, x: m[0](x).permute(0, 2, 3, 1), [CONV], None),
])  # fmt: skip
def test_the_graph_alone_tells_some_ranks(call, modules, rank):
    ranks, last = ranks_of(call, *modules)
    assert ranks[last] == rank


def test_shapes_of_a_run_tell_the_rest():
    ranks, last = ranks_of(lambda m, x: m[0](x), nn.Linear(3, 4), shapes=torch.Size([2, 5, 3]))
    assert ranks[last] == 3
    ranks, last = ranks_of(lambda m, x: m[0](x) + x, CONV, shapes=torch.Size([2, 3, 5, 5]))
    assert ranks[last] == 4


@pytest.mark.parametrize(("call", "modules", "channels"), [
    (lambda m, x: m[0](x), [CONV], (6, -3)),
    (lambda m, x: m[0](x), [nn.Conv1d(3, 5, 1)], (5, -2)),
    (lambda m, x: m[0](x), [nn.ConvTranspose2d(4, 6, 1, groups=2)], (6, -3)),
    (lambda m, x: F.gelu(m[0](x)), [nn.Linear(3, 8)], (8, -1)),
    (lambda m, x: m[1](m[0](x)).sigmoid() * 2, [CONV, nn.BatchNorm2d(6)], (6, -3)),
    (lambda m, x: m[0](x).mean(1), [CONV], None),
    (lambda m, x: m[0](x) + x, [CONV], None),
    (lambda m, x: x.relu(), [], None),
])  # fmt: skip
def test_channels_are_known_behind_a_layer_until_something_moves_them(call, modules, channels):
    ranks, last = ranks_of(call, *modules)
    assert ranks.channels(last) == channels
