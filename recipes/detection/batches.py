"""From annotated images to batches: scaled to one size, and for training flipped and scaled at random."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes.detection.coco import Coco, Target

Batch = tuple[Tensor, list[Target]]  # images (batch, 3, size, size) in 0..1, and the target of each

GREY = (114, 114, 114)  # around an image
SCALES = (0.6, 1.4)  # of random scaling
LEAST_VISIBLE = 0.25  # of a box, else it is no object to learn from


class Scaled(Dataset[tuple[Tensor, Target]]):
    """Images on a square canvas of `size` pixels: as large as fits, in the upper left corner; or, `augmented`, at
    random sizes and places and flipped half of the time, with PyTorch's own generator.
    """

    def __init__(self, coco: Coco, size: int, augmented: bool) -> None:
        self.coco, self.size, self.augmented = coco, size, augmented

    def __len__(self) -> int:
        return len(self.coco)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, target = self.coco.image(index), self.coco.targets[index]
        if not self.augmented:
            return place(image, target, self.size)
        scale, left, top, flip = torch.rand(4).tolist()
        low, high = SCALES
        return place(image, target, self.size, low + (high - low) * scale, (left, top), flip < 0.5)


def place(
    image: Image.Image,
    target: Target,
    size: int,
    scale: float = 1.0,
    at: tuple[float, float] = (0.0, 0.0),
    flip: bool = False,
) -> tuple[Tensor, Target]:
    """An image on a canvas, (3, size, size) in 0..1, and the target there. With `scale` 1 the longer side fills the
    canvas. `at` says, in 0..1, where the image is: 0 puts its left (upper) edges together, 1 its right (lower) ones, be
    it smaller than the canvas or greater. Boxes that are mostly outside are left out.
    """
    factor = scale * size / max(image.size)
    width, height = (max(1, round(factor * side)) for side in image.size)
    left, top = round(at[0] * (size - width)), round(at[1] * (size - height))
    canvas = Image.new("RGB", (size, size), GREY)
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (left, top))
    pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255

    factors = torch.tensor([width / image.width, height / image.height]).repeat(2)
    boxes = target["boxes"] * factors + torch.tensor([left, top]).repeat(2)
    inside = boxes.clamp(0, size)
    visible = area(inside) > LEAST_VISIBLE * area(boxes)
    boxes = inside[visible]
    if flip:
        pixels = pixels.flip(2)
        boxes = torch.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], 1)
    return pixels, {"boxes": boxes, "labels": target["labels"][visible]}


def area(boxes: Tensor) -> Tensor:
    """Of boxes (n, 4)."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def loader(dataset: Dataset[tuple[Tensor, Target]], batch: int, shuffle: bool, workers: int) -> DataLoader:
    """Batches of a dataset. What is random in them follows from PyTorch's seed when the iteration begins."""
    return DataLoader(dataset, batch, shuffle, num_workers=workers, collate_fn=_collate)


def _collate(items: list[tuple[Tensor, Target]]) -> Batch:
    images, targets = zip(*items, strict=True)
    return torch.stack(images), list(targets)


def to_device(batches: DataLoader, device: str) -> Iterator[Batch]:
    """Batches on a device."""
    for images, targets in batches:
        yield images.to(device), [{key: value.to(device) for key, value in target.items()} for target in targets]
