"""Networks of any number of layers with tiny tensors, and what it costs to work with them, in calls of functions."""

import cProfile
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two layers of a ResNet, which work in place."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class Residual(nn.Module):
    """`layers` convolutions with batch norms, with an addition every two of them."""

    def __init__(self, layers, width=2):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers // 2)))
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class Attention(nn.Module):
    """One block of a transformer: two layer norms, four linear layers, two products and a softmax."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.width, self.heads = width, heads

    def forward(self, x):
        batch, length = x.shape[:2]
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, self.width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)) * (self.width // self.heads) ** -0.5
        x = x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, self.width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """`blocks` blocks over words of three numbers."""

    def __init__(self, blocks, width=4, heads=2):
        super().__init__()
        self.patch = nn.Linear(3, width)
        self.blocks = nn.ModuleList(Attention(width, heads) for _ in range(blocks))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.patch(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


KINDS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (2, 3, 4, 4)),
    "transformer": (Transformer, (2, 4, 3)),
}


def network(kind: str, size: int) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode of so many layers, or blocks, and an input for it."""
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    return make(size).eval(), torch.randn(shape)


def calls(function: Callable[[], object]) -> int:
    """How many functions are called by one, Python's own and those of extensions: a time that no machine changes."""
    profile = cProfile.Profile()
    profile.runcall(function)
    return sum(entry.callcount for entry in profile.getstats())


def assert_linear(costs: Callable[[int], dict[str, int]], size: int) -> None:
    """Each cost of four times the size must be about four times the cost; `costs` are found once before, so that
    nothing is only done the first time.
    """
    costs(2)
    small, large = costs(size), costs(4 * size)
    growth = {step: large[step] / small[step] for step in small}
    assert max(growth.values()) < 4.3, growth
