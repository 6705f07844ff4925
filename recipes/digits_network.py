"""A small network with the parts of large ones: a residual block, and a depthwise-separable one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class DigitsNetwork(nn.Module):
    """Images (batch, 1, 16, 16) to logits (batch, classes)."""

    def __init__(self, classes: int = 10, width: int = 48) -> None:
        super().__init__()
        self.stem = convolution(1, width, 3)
        self.first = convolution(width, width, 3)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.relu = nn.ReLU(inplace=True)
        self.down = convolution(width, 2 * width, 3, stride=2)
        self.depthwise = convolution(2 * width, 2 * width, 3, groups=2 * width)
        self.pointwise = convolution(2 * width, 4 * width, 1, stride=2)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of each class."""
        x = self.stem(images)
        x = self.relu(self.second(self.first(x)) + x)
        x = self.pointwise(self.depthwise(self.down(x)))
        return self.classifier(self.dropout(torch.flatten(x.mean((2, 3)), 1)))
