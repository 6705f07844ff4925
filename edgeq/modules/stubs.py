"""Marks that a user sets in a model: what lies between them is quantized, and nothing else."""

from __future__ import annotations

from torch import Tensor, nn


class QuantStub(nn.Module):
    """Where quantization begins. A model that holds one is quantized only from there on."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class DeQuantStub(nn.Module):
    """Where quantization ends."""

    def forward(self, x: Tensor) -> Tensor:
        return x
