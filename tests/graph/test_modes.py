"""Calls in the graph of evaluation, beside the same calls in the graph of training."""

import torch
from torch import nn

from edgeq.errors import TraceError
from edgeq.graph.modes import in_both_modes
from edgeq.graph.trace import trace


class TwoWays(nn.Module):
    """Adds 1 and 2; in training the second number is another one, and there is a product more."""

    def forward(self, x):
        x = torch.add(torch.add(x, 1), 3 if self.training else 2)
        return torch.mul(torch.mul(x, 5), 6) if self.training else torch.mul(x, 5)


def pairs(target, in_training=lambda: trace(TwoWays(), training=True)):
    found = in_both_modes(trace(TwoWays()), in_training, lambda node: node.target is target)
    return [(node.args[1], other.args[1]) for node, other in found]


def test_calls_are_told_apart_by_their_order():
    assert pairs(torch.add) == [(1, 1), (2, 3)]


def test_calls_of_which_one_mode_has_more_are_no_pairs():
    assert pairs(torch.mul) == []


def test_a_model_is_traced_in_training_only_where_there_is_something_to_compare():
    asked = []
    assert pairs(torch.sub, in_training=lambda: asked.append(1)) == []
    assert asked == []


def test_a_model_that_cannot_be_traced_in_training_has_no_pairs():
    def fails():
        raise TraceError("no")

    assert pairs(torch.add, in_training=fails) == []


def test_tracing_in_training_draws_no_random_numbers():
    def draws():
        torch.rand(3)
        return trace(TwoWays(), training=True)

    before = torch.get_rng_state()
    assert len(pairs(torch.add, in_training=draws)) == 2
    assert torch.equal(torch.get_rng_state(), before)
