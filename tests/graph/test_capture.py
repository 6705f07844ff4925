"""A model is captured whichever way, and what its graph leaves out is told."""

import logging

import torch
from torch import nn

import edgeq


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.extra = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        x = self.body(x)
        return (self.head(x), self.extra(x)) if self.training else self.head(x)


def test_submodules_that_run_in_training_only_are_told(caplog):
    with caplog.at_level(logging.WARNING, "edgeq"):
        edgeq.QATFxModule(Auxiliary(), total_epochs=1)
    assert "Auxiliary runs extra in training only" in caplog.text
    assert "submodules=" in caplog.text


def test_submodules_that_never_run_are_nobodys_business(caplog):
    class Spare(Auxiliary):
        def forward(self, x):
            return self.head(self.body(x))

    with caplog.at_level(logging.WARNING, "edgeq"):
        edgeq.QATFxModule(Spare(), total_epochs=1)
    assert caplog.text == ""


def test_parts_keep_what_runs_in_training_only():
    torch.manual_seed(0)
    model = Auxiliary()
    training = edgeq.QATFxModule(model, total_epochs=1, submodules=["body"]).train()
    head, extra = training(torch.randn(6, 4))
    (head.sum() + extra.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert training.eval()(torch.randn(6, 4)).shape == (6, 2)
