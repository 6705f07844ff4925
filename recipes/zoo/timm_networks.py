"""A sample of timm: the smallest network of each of its files."""

from __future__ import annotations

import torch
from torch import nn

from recipes.zoo.stages import Subject

FAMILIES: dict[str, tuple[str, ...]] = {"timm": ()}


def subject(name: str, family: str) -> Subject:
    """One of the networks above, at the size that timm names for it."""
    return Subject(name, family, lambda: _build(name), lambda: (torch.randn(2, 3, 224, 224),))


def _build(name: str) -> nn.Module:
    import timm

    return timm.create_model(name)
