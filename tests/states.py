"""Looking at the whole state of a module, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {key: value.clone() for key, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: nn.Module | dict[str, Tensor]) -> list[str]:
    """The keys whose values differ in any bit, or that only one of the two has."""
    now = after.state_dict() if isinstance(after, nn.Module) else after
    same = {key for key in before.keys() & now.keys() if torch.equal(before[key], now[key])}
    return sorted((before.keys() | now.keys()) - same)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
    """One step of a training whose loss is the mean square of the output."""
    optimizer.zero_grad()
    model(batch).float().square().mean().backward()
    optimizer.step()


def run_epochs(wrapped: nn.Module, data: list[Tensor], epochs: int) -> None:
    """So many epochs of training, or of calibration, over the batches of `data`."""
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
    for _ in range(epochs):
        wrapped.train()
        for batch in data:
            if wrapped.is_qat:
                train_step(wrapped, optimizer, batch)
            else:
                wrapped(batch)
