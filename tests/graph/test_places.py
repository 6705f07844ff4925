"""Where each operation of a graph is called."""

import torch
from torch import nn

from edgeq.graph.places import node_name, places_of
from edgeq.graph.trace import trace
from edgeq.spec import Place


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.two(self.one(x) + x).add(1)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(Inner())
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x):
        return self.last(torch.add(self.inner(x), x))


def test_a_place_has_a_name_types_a_scope_an_order_and_the_classes_around_it():
    model = Outer()
    graph = trace(model)
    places = {place.name: place for place in places_of(graph, model).values()}
    around = ("Inner", "Sequential", "Outer")
    assert places["inner.0.one"] == Place("inner.0.one", ("linear", "Linear"), "inner.0", (0, 0), around)
    assert places["inner.0.two"] == Place("inner.0.two", ("linear", "Linear"), "inner.0", (1, 1), around)
    assert places["inner.0.add"] == Place("inner.0.add", ("add",), "inner.0", (0,), around)
    assert places["inner.0.add_1"] == Place("inner.0.add_1", ("add",), "inner.0", (1,), around)
    assert places["add_2"] == Place("add_2", ("add",), "", (0,), ("Outer",))
    assert places["last"] == Place("last", ("linear", "Linear"), "", (0, 0), ("Outer",))  # not ParametrizedLinear
    assert [node_name(node) for node in graph.nodes if node.op.startswith("call")] == [
        "inner.0.one",
        "inner.0.add",
        "inner.0.two",
        "inner.0.add_1",
        "add_2",
        "last",
    ]
