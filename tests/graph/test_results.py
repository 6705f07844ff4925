"""The tensors inside of what a network returns."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import edgeq
from edgeq.graph.passes.compare import greatest_difference
from edgeq.graph.results import opened, tensors_in

Pair = namedtuple("Pair", "first second")


@dataclass
class Record:
    logits: Any
    features: Any = None


@dataclass
class Output(dict):
    logits: Any = None

    def __post_init__(self):
        self["logits"] = self.logits


def test_tensors_are_found_in_order_with_what_leads_to_them():
    x, y = torch.zeros(1), torch.ones(1)
    found = list(tensors_in({"a": [None, x], "b": Record(Pair(y, 3), {"c": x})}))
    assert [path for path, _ in found] == [("a", "1"), ("b", "logits", "first"), ("b", "features", "c")]
    assert [tensor for _, tensor in found] == [x, y, x]


def test_objects_that_a_graph_makes_are_opened_and_no_other_calls():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    other = graph.call_function(torch.relu, (x,))
    made = graph.call_function(Record, (), {"logits": x, "features": None})
    inside = graph.call_function(Record, (), {"features": x, "logits": made})
    pair = graph.call_function(Pair, (other,), {"second": inside})
    assert opened((pair, other)) == ([other, [[x, None], x]], other)


def test_differences_inside_of_objects_are_found():
    one, other = torch.zeros(2), torch.tensor([0.0, 3.0])
    for kind in (Record, Output):
        assert greatest_difference(kind(other), kind(one)) == (3.0, 3.0)
        assert greatest_difference({"logits": other}, kind(other)) == (0.0, 3.0)


def test_a_rewrite_in_a_network_that_returns_an_object_is_measured_on_the_whole():
    class Returning(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, image):
            return Output(logits=self.layer(image).mean((2, 3)))

    changes = edgeq.PTCFxModule(Returning().eval(), example_inputs=torch.randn(2, 3, 8, 8)).module.changes
    assert [change.rewrite for change in changes.each] == ["mean_to_pool"]
    assert changes.difference < 1e-6 < changes.size
