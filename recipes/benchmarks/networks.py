"""torchvision's networks, with batch norms that have seen data, and data for them. Everything follows from a seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recipes.torchvision_import import import_torchvision


def network_names() -> list[str]:
    """The classifiers that torchvision has."""
    return import_torchvision().models.list_models(module=import_torchvision().models)


def network(name: str, batches: list[Tensor], seed: int = 0) -> nn.Module:
    """A classifier in eval mode with random weights. Its batch norms have the statistics of `batches`, so that
    its activations spread as a trained network's do.
    """
    torch.manual_seed(seed)
    model = import_torchvision().models.get_model(name, weights=None).train()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain average of all batches
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    return model.eval()


def image_batches(images: int, batch: int, size: int, seed: int = 0) -> list[Tensor]:
    """Batches (batch, 3, size, size) of standard normal numbers, at least one, of about `images` in all."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, size, size, generator=generator) for _ in range(max(1, images // batch))]
