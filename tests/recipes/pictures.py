"""Folders of small images: handwritten digits by class, and coloured shapes with a mask each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

COLOURS = {1: (200, 60, 50), 2: (60, 90, 200)}  # of the squares and the discs; class 0 is the background
NETWORK = """
from recipes.digits_network import DigitsNetwork, convolution


class Net(DigitsNetwork):
    def __init__(self, num_classes):
        super().__init__(num_classes, width=16)
        self.stem = convolution(3, 16, 3)
"""


def write_digits(root: Path, count: int | None = None) -> Path:
    """scikit-learn's digits, or the first of them, in train/<digit>/ and, every fourth, in val/<digit>/."""
    found = load_digits()
    for index, (image, label) in enumerate(zip(found.images[:count], found.target[:count], strict=True)):
        folder = root / ("val" if index % 4 == 3 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(folder / f"{index}.png")
    return root


def write_shapes(root: Path, train: int, val: int, size: int = 64) -> Path:
    """A square and a disc on noise in each image; the pixels at their edges do not count."""
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (root / part / kind).mkdir(parents=True)
        for index in range(count):
            image = Image.fromarray(generator.integers(0, 120, (size, size + 8, 3), dtype=np.uint8))
            mask = Image.new("L", image.size, 0)
            for label, colour in COLOURS.items():
                side = int(generator.integers(size // 4, size // 2))
                left, top = generator.integers(0, size - side, 2)
                box = (int(left), int(top), int(left) + side, int(top) + side)
                for picture, fill, outline in ((image, colour, colour), (mask, label, 255)):
                    draw = ImageDraw.Draw(picture)
                    (draw.rectangle if label == 1 else draw.ellipse)(box, fill, outline)
            image.save(root / part / "images" / f"{index}.jpg", quality=95)
            mask.save(root / part / "masks" / f"{index}.png")
    return root
