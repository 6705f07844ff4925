"""Small networks with the features of real ones, and data for them. Everything follows from the seed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPE = (3, 16, 16)


class Residual(nn.Module):
    """Conv, batch norm and ReLU with a residual add, as in a ResNet; global mean and a linear head."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.pool = nn.AvgPool2d(2)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        y = self.pool(self.relu(y)).mean((2, 3))
        return self.fc(self.dropout(y))


class Separable(nn.Module):
    """An inverted residual, as in a MobileNet: pointwise, depthwise, ReLU6, a linear bottleneck."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()

        def block(cin: int, cout: int, k: int, groups: int, act: bool) -> nn.Sequential:
            layers: list[nn.Module] = [nn.Conv2d(cin, cout, k, padding=k // 2, groups=groups, bias=False)]
            layers.append(nn.BatchNorm2d(cout))
            if act:
                layers.append(nn.ReLU6(inplace=True))
            return nn.Sequential(*layers)

        self.stem = block(3, width, 3, 1, True)
        self.expand = block(width, 2 * width, 1, 1, True)
        self.depth = block(2 * width, 2 * width, 3, 2 * width, True)
        self.project = block(2 * width, width, 1, 1, False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depth(self.expand(x)))
        return self.classifier(torch.flatten(self.pool(x), 1))


class Attention(nn.Module):
    """Patches, one transformer block with LayerNorm, softmax attention and GELU, and a linear head."""

    def __init__(self, width: int = 16, heads: int = 2, classes: int = 5) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, classes)
        self.heads, self.width = heads, width

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        batch, length = x.shape[0], x.shape[1]
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, self.width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)) * (self.width // self.heads) ** -0.5
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, self.width)
        x = x + self.proj(y)
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x.mean(1))


NETWORKS = {"residual": Residual, "separable": Separable, "attention": Attention}


def network(name: str, seed: int = 0) -> nn.Module:
    """A network in eval mode with batch-norm statistics that are not those of a fresh one."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    model.train()
    with torch.no_grad():
        for batch in batches(3, seed + 1):
            model(batch)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return model.eval()


def batches(count: int = 2, seed: int = 0, size: int = 4) -> list[Tensor]:
    """Batches (size, 3, 16, 16) of normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, *SHAPE, generator=generator) for _ in range(count)]
