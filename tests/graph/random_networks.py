"""Small networks made at random: any operation may follow any other, and any value may be read more than once."""

# ruff: noqa: E501 - lists

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Value = tuple[int, int]  # which value of the network, and its channels
SIZE = 8  # height and width of every value but the outputs


class RandomNetwork(nn.Module):
    """A program of steps over a list of values (2, channels, 8, 8); each step appends one. Most of the last values are
    outputs, some through a global mean and a linear layer.
    """

    def __init__(self, seed: int, steps: int = 10) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.random = random.Random(seed)
        self.blocks = nn.ModuleDict()
        self.program: list[Callable[[list[Tensor]], Any]] = []
        self.channels = [3]
        self._step(self._layer)
        for _ in range(steps):
            self._step(self.random.choice(self.random.choice(self._kinds())))
        self.last = [*self.random.sample(range(1, len(self.channels)), 2), len(self.channels) - 1]
        self.head = nn.Linear(self.channels[-1], 4)
        del self.random
        self._settle()

    def forward(self, x: Tensor) -> dict[str, Any]:
        values = [x]
        for step in self.program:
            values.append(step(values))
        first, second, last = (values[index] for index in self.last)
        return {"maps": (first, second), "scores": self.head(last.mean((2, 3)))}

    # ---- what a step may be

    def _kinds(self) -> list[list[Callable[[], Any]]]:
        return [
            [self._layer, self._layer, self._shared, self._functional],
            [self._activation],
            [self._pair],
            [self._number],
            [self._pool, self._mover],
            [self._several],
        ]

    def _step(self, make: Callable[[], tuple[Callable[[list[Tensor]], Any], int]]) -> None:
        step, channels = make()
        self.program.append(step)
        self.channels.append(channels)

    def _pick(self) -> tuple[int, int]:
        """A value, the later the likelier, and its channels."""
        index = max(self.random.randrange(len(self.channels)) for _ in range(2))
        return index, self.channels[index]

    def _block(self, module: nn.Module) -> nn.Module:
        self.blocks[str(len(self.blocks))] = module
        return module

    def _layer(self) -> Any:
        index, channels = self._pick()
        out = self.random.choice([4, 6, 8])
        groups = self.random.choice([1, 1, 2]) if channels % 2 == 0 else 1
        bias = self.random.random() < 0.5
        kind = self.random.randrange(5)
        if kind == 0:
            out = channels
            layer: nn.Module = nn.Conv2d(channels, out, 3, padding=1, groups=channels, bias=bias)
        elif kind == 1:
            layer = nn.ConvTranspose2d(channels, out, 3, padding=1, groups=groups, bias=bias)
        elif kind == 2:
            mode = self.random.choice(["zeros", "reflect", "replicate", "circular"])
            layer = nn.Conv2d(channels, out, 5, padding=2, groups=groups, bias=bias, padding_mode=mode)
        else:
            layer = nn.Conv2d(channels, out, self.random.choice([1, 3]), padding="same", groups=groups, bias=bias)
        parts = [layer]
        if self.random.random() < 0.6:
            parts.append(nn.BatchNorm2d(out, affine=self.random.random() < 0.8))
        if self.random.random() < 0.6:
            inplace = self.random.random() < 0.5
            clips = [nn.ReLU(inplace), nn.ReLU6(inplace), nn.Hardtanh(-0.7, 0.9)]
            parts.append(self.random.choice([*clips, nn.GELU(), nn.Hardswish(inplace), nn.Sigmoid()]))
        block = self._block(nn.Sequential(*parts))
        return lambda values: block(values[index]), out

    def _shared(self) -> Any:
        """A convolution that is called on two values."""
        index, channels = self._pick()
        other = self.random.choice([i for i, count in enumerate(self.channels) if count == channels])
        layer = self._block(nn.Conv2d(channels, channels, 1))
        return lambda values: layer(values[index]) + layer(values[other]), channels

    def _functional(self) -> Any:
        index, channels = self._pick()
        layer = self._block(nn.Linear(channels, 4, bias=self.random.random() < 0.5))

        def step(values: list[Tensor]) -> Tensor:
            moved = values[index].permute(0, 2, 3, 1)
            return F.linear(moved, layer.weight, layer.bias).permute(0, 3, 1, 2)

        return step, 4

    def _activation(self) -> Any:
        index, channels = self._pick()
        function = self.random.choice(ACTIVATIONS)
        return lambda values: function(values[index]), channels

    def _pair(self) -> Any:
        index, channels = self._pick()
        other = self.random.choice([i for i, count in enumerate(self.channels) if count == channels])
        function = self.random.choice(PAIRS)
        return lambda values: function(values[index], values[other]), channels

    def _number(self) -> Any:
        index, channels = self._pick()
        number, function = self.random.choice([0.5, -1.5, 2, 3.3]), self.random.choice(NUMBERS)
        return lambda values: function(values[index], number), channels

    def _pool(self) -> Any:
        index, channels = self._pick()
        function = self.random.choice(POOLS)
        return lambda values: function(values[index]), channels

    def _mover(self) -> Any:
        index, channels = self._pick()
        function = self.random.choice(MOVERS)
        return lambda values: function(values[index]), channels

    def _several(self) -> Any:
        index, channels = self._pick()
        other, more = self._pick()
        if channels % 2 == 0 and self.random.random() < 0.5:
            return lambda values: torch.cat(values[index].chunk(2, 1)[::-1], 1), channels
        if channels + more <= 16:
            return lambda values: torch.cat([values[index], values[other]], 1), channels + more
        return lambda values: values[index][:, 1:5], min(4, channels - 1)

    def _settle(self) -> None:
        """Batch norms with statistics that fit the data, and gammas of either sign, one of them zero."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
                module.weight.data[0] = 0
        self.train()
        with torch.no_grad():
            for _ in range(5):
                self(torch.randn(4, 3, SIZE, SIZE))
        self.eval()


ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    F.relu, F.relu6, F.hardtanh, lambda x: x.clamp(-0.4, 1.3), lambda x: x.clamp(min=0.2), torch.sigmoid, torch.tanh, F.silu, F.gelu,
    F.hardswish, F.hardsigmoid, F.elu, lambda x: F.leaky_relu(x, 0.1), lambda x: x.softmax(1), lambda x: x.abs(), lambda x: torch.exp(-x.abs()),
    lambda x: F.layer_norm(x, (SIZE, SIZE)), lambda x: (x + 0.1).relu_(),
]  # fmt: skip
PAIRS: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add, torch.sub, torch.mul, lambda x, y: x / (y.abs() + 1), lambda x, y: F.relu(x + y), lambda x, y: F.relu6(x * y),
    lambda x, y: x @ y, lambda x, y: F.relu(x @ y.mT), torch.maximum, lambda x, y: torch.where(x > y, x, y),
    lambda x, y: x + torch.stack([x, y]).mean(0),
]  # fmt: skip
NUMBERS: list[Callable[[Tensor, float], Tensor]] = [
    torch.add, torch.mul, torch.div, lambda x, n: n - x, lambda x, n: F.relu(x + n), lambda x, n: torch.where(x > 0, x, n),
]  # fmt: skip
POOLS: list[Callable[[Tensor], Tensor]] = [
    lambda x: F.max_pool2d(x, 3, 1, 1), lambda x: F.avg_pool2d(x, 3, 1, 1), lambda x: F.interpolate(F.max_pool2d(x, 2), scale_factor=2),
    lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear"), lambda x: x.mean((2, 3), keepdim=True) + x,
    lambda x: F.relu(F.max_pool2d(x, 3, 1, 1)), lambda x: x * F.adaptive_avg_pool2d(x, 1).sigmoid(),
]  # fmt: skip
MOVERS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.flip(1), lambda x: x.transpose(2, 3), lambda x: x.flatten(2).unflatten(2, (SIZE, SIZE)),
    lambda x: F.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 2:], lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, 2:, 2:],
    lambda x: x.reshape(x.size(0), -1).view(x.shape), lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2), lambda x: x.contiguous().clone(),
    lambda x: x[:, :, ::2].repeat(1, 1, 2, 1), lambda x: x.roll(1, 3),
]  # fmt: skip
