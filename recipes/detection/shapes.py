"""Images of coloured shapes on noise, with annotations in COCO's format: data to try the recipe on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("rectangle", "circle", "triangle")


def write_shapes(folder: Path, count: int, size: int, seed: int) -> tuple[Path, Path]:
    """Draws `count` images of `size` x `size` pixels with one to four shapes each; returns the paths of the annotations
    and of the folder of images.
    """
    random = np.random.default_rng(seed)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    entries: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": place + 1, "name": name} for place, name in enumerate(CLASSES)],
    }
    for number in range(count):
        image = Image.fromarray(random.integers(60, 140, (size, size, 3), dtype=np.uint8))
        name = f"{number:05}.png"
        for label, box in _draw(image, random):
            x1, y1, x2, y2 = box
            entries["annotations"].append(
                {
                    "id": len(entries["annotations"]) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
        image.save(images / name)
        entries["images"].append({"id": number, "file_name": name, "width": size, "height": size})
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(entries))
    return annotations, images


def _draw(image: Image.Image, random: np.random.Generator) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Shapes that do not overlap: label and box x1 y1 x2 y2 of each."""
    pen, size = ImageDraw.Draw(image), image.width
    found: list[tuple[int, tuple[int, int, int, int]]] = []
    for _ in range(random.integers(1, 5)):
        width, height = (int(side) for side in random.integers(size // 6, size // 2, 2))
        label = int(random.integers(len(CLASSES)))
        if CLASSES[label] == "circle":
            height = width
        x, y = int(random.integers(0, size - width)), int(random.integers(0, size - height))
        box = (x, y, x + width, y + height)
        if any(x < b[2] and b[0] < box[2] and y < b[3] and b[1] < box[3] for _, b in found):
            continue
        color = tuple(int(value) for value in random.choice([random.integers(0, 50), random.integers(180, 256)], 3))
        corners = (x, y, x + width - 1, y + height - 1)  # the last pixel that is drawn
        if CLASSES[label] == "rectangle":
            pen.rectangle(corners, color)
        elif CLASSES[label] == "circle":
            pen.ellipse(corners, color)
        else:
            pen.polygon([(x, corners[3]), (corners[2], corners[3]), (x + width // 2, y)], color)
        found.append((label, box))
    return found
