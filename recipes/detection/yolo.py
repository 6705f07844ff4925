"""A detector of the YOLO family: one look at the image, no anchors, one map of classes and one of boxes a level.

The parts, from the image to the maps:
- backbone: convolutions of stride 2, each followed by a `Split` block, down to 1/32 of the image;
- neck (a path aggregation network): the coarse maps go up and are joined to the finer ones, then down again, so that
  each level knows both what is there and where exactly;
- head: at 1/8, 1/16 and 1/32 of the image, a branch for the classes and one for the boxes.

The network returns raw numbers, which is what is quantized and exported; `yolo_boxes.py` makes boxes of them and
`yolo_loss.py` says how they are trained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

STRIDES = (8, 16, 32)  # pixels from one point of a map to the next
CHANNELS = (64, 128, 256, 512, 1024)  # at width 1, after each convolution of stride 2
BLOCKS = (3, 6, 6, 3)  # at depth 1, in the backbone's four `Split`s
PRIOR = 0.01  # the probability of each class at each point before training
FIRST_DISTANCE = 2.0  # from a point to the sides of its box before training, in strides

Maps = list[tuple[Tensor, Tensor]]  # a level: classes (batch, classes, h, w) and boxes (batch, 4, h, w), both raw


class Convolution(nn.Sequential):
    """Convolution, batch norm and SiLU; keeps the size at stride 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs, momentum=0.03),
            nn.SiLU(inplace=True),
        )


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with a short cut around them in the backbone."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.first = Convolution(channels, channels, 3)
        self.second = Convolution(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as `x`."""
        y = self.second(self.first(x))
        return x + y if self.shortcut else y


class Split(nn.Module):
    """A cross-stage partial block ("C2f"): half of the channels goes through bottlenecks, one after the other, and
    all that is made on the way is joined at the end, so that gradients have short ways.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, shortcut: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.enter = Convolution(inputs, 2 * half)
        self.blocks = nn.ModuleList(Bottleneck(half, shortcut) for _ in range(blocks))
        self.leave = Convolution((2 + blocks) * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`outputs` channels at the same size."""
        kept, y = self.enter(x).chunk(2, 1)
        parts = [kept, y]
        for block in self.blocks:
            y = block(y)
            parts.append(y)
        return self.leave(torch.cat(parts, 1))


class Pooling(nn.Module):
    """Spatial pyramid pooling ("SPPF"): maxima over 5, 9 and 13 points, so that the coarsest map sees far."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.enter = Convolution(channels, half)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.leave = Convolution(4 * half, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as `x`."""
        x = self.enter(x)
        five = self.pool(x)
        nine = self.pool(five)
        return self.leave(torch.cat([x, five, nine, self.pool(nine)], 1))


class Branches(nn.Module):
    """The decoupled head of one level: what an object is and where its sides are need different features."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.classes = _branch(inputs, hidden, classes)
        self.boxes = _branch(inputs, hidden, 4)
        nn.init.constant_(self.classes[-1].bias, -math.log(1 / PRIOR - 1))  # type: ignore[arg-type]
        nn.init.constant_(self.boxes[-1].bias, math.log(math.expm1(FIRST_DISTANCE)))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The raw maps of classes and boxes."""
        return self.classes(x), self.boxes(x)


def _branch(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Convolution(inputs, hidden, 3), Convolution(hidden, hidden, 3), nn.Conv2d(hidden, outputs, 1))


class Yolo(nn.Module):
    """Images (batch, 3, height, width) in 0..1, sides multiples of 32, to raw maps at strides 8, 16 and 32.

    `width` scales the channels and `depth` the number of blocks: 0.25 and 0.34 make a network for small devices, 1 and
    1 a large one.
    """

    def __init__(self, classes: int, width: float = 0.25, depth: float = 0.34) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (max(8, 8 * round(width * channels / 8)) for channels in CHANNELS)
        n2, n3, n4, n5 = (max(1, round(depth * blocks)) for blocks in BLOCKS)
        self.to_8 = nn.Sequential(
            Convolution(3, c1, 3, 2),
            Convolution(c1, c2, 3, 2),
            Split(c2, c2, n2, shortcut=True),
            Convolution(c2, c3, 3, 2),
            Split(c3, c3, n3, shortcut=True),
        )
        self.to_16 = nn.Sequential(Convolution(c3, c4, 3, 2), Split(c4, c4, n4, shortcut=True))
        self.to_32 = nn.Sequential(Convolution(c4, c5, 3, 2), Split(c5, c5, n5, shortcut=True), Pooling(c5))
        self.twice = nn.Upsample(scale_factor=2, mode="nearest")
        self.up_16 = Split(c5 + c4, c4, n5, shortcut=False)
        self.up_8 = Split(c4 + c3, c3, n5, shortcut=False)
        self.half_8 = Convolution(c3, c3, 3, 2)
        self.down_16 = Split(c3 + c4, c4, n5, shortcut=False)
        self.half_16 = Convolution(c4, c4, 3, 2)
        self.down_32 = Split(c4 + c5, c5, n5, shortcut=False)
        self.head = nn.ModuleList(Branches(inputs, c3, classes) for inputs in (c3, c4, c5))

    def forward(self, images: Tensor) -> Maps:
        """A pair of maps for each stride: classes (batch, classes, h, w) and distances (batch, 4, h, w)."""
        fine = self.to_8(images)
        middle = self.to_16(fine)
        coarse = self.to_32(middle)
        middle = self.up_16(torch.cat([self.twice(coarse), middle], 1))
        fine = self.up_8(torch.cat([self.twice(middle), fine], 1))
        middle = self.down_16(torch.cat([self.half_8(fine), middle], 1))
        coarse = self.down_32(torch.cat([self.half_16(middle), coarse], 1))
        return [branches(level) for branches, level in zip(self.head, (fine, middle, coarse), strict=True)]
