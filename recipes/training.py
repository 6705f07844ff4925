"""The training loop that a user has anyway: nothing in it knows of quantization."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median

import torch
from torch import Tensor, nn
from tqdm import tqdm

Network = Callable[[Tensor], Tensor]


def train(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], epochs: int, rate: float, title: str) -> None:
    """Trains with SGD, momentum and a cosine schedule; `rate` is the learning rate at its start."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        model.train()
        for images, labels in tqdm(loader, desc=f"{title}, epoch {epoch + 1} of {epochs}", disable=None, leave=False):
            loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def logits(model: Network, loader: Iterable[tuple[Tensor, Tensor]], title: str) -> tuple[Tensor, Tensor]:
    """What the model says of every image, and the labels."""
    found = [(model(images), labels) for images, labels in tqdm(loader, desc=title, disable=None, leave=False)]
    outputs, labels = zip(*found, strict=True)
    return torch.cat(outputs), torch.cat(labels)


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Top-1 in percent."""
    return 100 * (outputs.argmax(1) == labels).float().mean().item()


@torch.no_grad()
def milliseconds(models: dict[str, Network], images: Tensor, rounds: int = 15) -> dict[str, float]:
    """Median time of each model for one batch. The models take turns, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(rounds + 2):
        for name, model in models.items():
            start = time.perf_counter()
            model(images)
            if round_ >= 2:  # the first two fill the caches
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}
