"""What tests of quantizers that learn do: train a small network a little."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import edgeq
from tests.networks import batches, network
from tests.test_presets import CALIBRATED, NAMES

LEARNING = [name for name in NAMES if name not in CALIBRATED]
DEPLOYED = [name for name in LEARNING if not name.endswith(("APOT", "NNIE"))]  # which hardware can hold
DATA = batches(4)
TARGET = torch.linspace(-0.5, 1.0, 5)


def prepared(preset, name: str = "residual", epochs: int = 4, **options) -> edgeq.QATFxModule:
    """A small network in training mode, before its first batch."""
    torch.manual_seed(0)
    return edgeq.QATFxModule(network(name).train(), preset, total_epochs=epochs, **options)


def optimizer_of(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    """With momentum, so that a parameter that stands still is seen to."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """How far the outputs are from what they are to become."""
    return (model(batch).float() - TARGET).square().mean()


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> float:
    """An epoch; the mean loss."""
    torch.manual_seed(seed)  # of dropout
    model.train()
    total = 0.0
    for batch in DATA:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(DATA)


def trained(preset, name: str = "residual", epochs: int = 2, **options) -> edgeq.QATFxModule:
    """A small network after some epochs, in evaluation mode."""
    model = prepared(preset, name, **options)
    optimizer = optimizer_of(model)
    for epoch in range(epochs):
        train_epoch(model, optimizer, epoch)
    return model.eval()
