"""Reads annotations in COCO's format: a JSON file of images, annotations and categories, beside a folder of images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from recipes.detection.errors import AnnotationError

Target = dict[str, Tensor]  # boxes, float32, shape (n, 4), x1 y1 x2 y2 in pixels; labels, int64, shape (n,), from 0


@dataclass
class Coco:
    """Images and their targets, in the order of the file. `classes` are the categories' names in the order of their
    ids, which need not be dense: a label is a place in this list. `dropped` counts the boxes of which nothing
    lies inside of their image.
    """

    paths: list[Path]
    sizes: list[tuple[int, int]]  # width, height
    targets: list[Target]
    classes: list[str]
    dropped: int

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def objects(self) -> int:
        """In all images."""
        return sum(len(target["labels"]) for target in self.targets)

    def __str__(self) -> str:
        left_out = f" (left out: {self.dropped} outside of their images)" if self.dropped else ""
        return f"{len(self)} images with {self.objects} objects of {len(self.classes)} classes{left_out}"

    def image(self, index: int) -> Image.Image:
        """The image as RGB. Raises AnnotationError when it is broken, or not as large as the annotations say."""
        path, size = self.paths[index], self.sizes[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except OSError as error:
            raise AnnotationError(f"{path} cannot be read: {error}.") from error
        if image.size != size:
            said, found = ("x".join(map(str, sides)) for sides in (size, image.size))
            raise AnnotationError(f"{path} has {found} pixels, its annotations say {said}.")
        return image


def read_coco(annotations: str | Path, images: str | Path) -> Coco:
    """The images in the folder `images` that `annotations` describes. Boxes are clipped to their image; crowds
    (iscrowd = 1), which stand for no single object, are left out.

    Raises AnnotationError for files that are missing and entries that make no sense.
    """
    path = Path(annotations)
    content = _load(path)
    categories = _by_id(content["categories"], path, "category")
    entries = _by_id(content["images"], path, "image")
    paths = [Path(images) / _name(entry, path) for entry in entries.values()]
    missing = [str(file) for file in paths if not file.is_file()]
    if missing:
        raise AnnotationError(f"{path}: {len(missing)} of {len(paths)} images are not there, first {missing[0]!r}.")
    sizes = {
        identity: (_integer(entry, "width", path, "image"), _integer(entry, "height", path, "image"))
        for identity, entry in entries.items()
    }
    label = {identity: place for place, identity in enumerate(sorted(categories))}
    objects: dict[int, list[tuple[list[float], int]]] = {identity: [] for identity in sizes}
    dropped = 0
    for entry in content["annotations"]:
        identity = _known(entry, "image_id", sizes, path)
        category = _known(entry, "category_id", label, path)
        box = _clipped(_box(entry, path), sizes[identity])
        if entry.get("iscrowd", 0):
            continue
        if box[2] > box[0] and box[3] > box[1]:
            objects[identity].append((box, label[category]))
        else:
            dropped += 1
    classes = [str(categories[identity].get("name", identity)) for identity in label]
    return Coco(paths, list(sizes.values()), [_target(found) for found in objects.values()], classes, dropped)


def _target(objects: list[tuple[list[float], int]]) -> Target:
    boxes = torch.tensor([box for box, _ in objects], dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor([label for _, label in objects], dtype=torch.int64)}


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AnnotationError(f"The annotations {str(path)!r} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise AnnotationError(f"{path} is no JSON: {error}") from error
    keys = ("images", "annotations", "categories")
    lacking = [key for key in keys if not isinstance(found, dict) or not isinstance(found.get(key), list)]
    if lacking:
        raise AnnotationError(
            f"{path} must hold an object with the lists {', '.join(keys)}; it lacks {', '.join(lacking)}."
        )
    for key in keys:
        odd = next((entry for entry in found[key] if not isinstance(entry, dict)), None)
        if odd is not None:
            raise AnnotationError(f"{path}: an entry of {key} is {odd!r}, not an object.")
    return found


def _get(entry: dict[str, Any], key: str, path: Path, kind: str) -> Any:
    if key not in entry:
        raise AnnotationError(f"{path}: {kind} {entry.get('id')} has no {key!r}.")
    return entry[key]


def _name(entry: dict[str, Any], path: Path) -> str:
    """Of the file of an image."""
    value = _get(entry, "file_name", path, "image")
    if not isinstance(value, str):
        raise AnnotationError(f"{path}: image {entry.get('id')}: 'file_name' is {value!r}, not a string.")
    return value


def _integer(entry: dict[str, Any], key: str, path: Path, kind: str) -> int:
    value = _get(entry, key, path, kind)
    if isinstance(value, bool) or not isinstance(value, int):
        raise AnnotationError(f"{path}: {kind} {entry.get('id')}: {key!r} is {value!r}, not an integer.")
    return value


def _by_id(entries: list[dict[str, Any]], path: Path, kind: str) -> dict[int, dict[str, Any]]:
    found = {_integer(entry, "id", path, kind): entry for entry in entries}
    if not found:
        raise AnnotationError(f"{path} has no {kind}.")
    if len(found) < len(entries):
        raise AnnotationError(f"{path}: two entries have the same {kind} id.")
    return found


def _known(entry: dict[str, Any], key: str, known: Mapping[int, object], path: Path) -> int:
    """The id of an image or category that an annotation refers to."""
    value = _integer(entry, key, path, "annotation")
    if value not in known:
        raise AnnotationError(f"{path}: annotation {entry.get('id')}: {key!r} is {value}, which is not in the file.")
    return value


def _box(entry: dict[str, Any], path: Path) -> list[float]:
    """x, y, width and height of an annotation."""
    box = _get(entry, "bbox", path, "annotation")
    numbers = isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)
    if not numbers or not all(map(math.isfinite, box)) or box[2] < 0 or box[3] < 0:
        raise AnnotationError(
            f"{path}: annotation {entry.get('id')}: 'bbox' is {box!r}; it must be [x, y, width, height] in pixels, "
            "with width and height not negative."
        )
    return [float(value) for value in box]


def _clipped(box: list[float], size: tuple[int, int]) -> list[float]:
    """x1, y1, x2, y2, inside of an image of `size`."""
    x, y, width, height = box
    corners = (x, y, x + width, y + height)
    return [min(max(value, 0.0), float(limit)) for value, limit in zip(corners, (*size, *size), strict=True)]
