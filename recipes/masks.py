"""Images with a class for each pixel: a folder of JPEGs and one of PNGs, as PASCAL VOC keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from recipes.data import DEVIATION, MEAN

IGNORED = 255  # the class of pixels that do not count
IMAGES = (".jpg", ".jpeg", ".png")


class Masks(Dataset):
    """Pairs of `root`/images/<name>.jpg and `root`/masks/<name>.png, whose pixels are indices of classes, or 255.

    An item is an image (3, size, size), normalized with ImageNet's statistics, and its classes (size, size), int64.
    The longer side becomes `size`, and what is missing of the square is black and ignored. With `augmented` it becomes
    0.5 to 2 times that, a random square is cut out, and half of the images are mirrored.

    Raises FileNotFoundError for a missing folder or mask, ValueError for a mask that does not fit.
    """

    def __init__(self, root: str | Path, classes: int, size: int, augmented: bool) -> None:
        self.root, self.classes, self.size, self.augmented = Path(root), classes, size, augmented
        for folder in (self.root / "images", self.root / "masks"):
            if not folder.is_dir():
                raise FileNotFoundError(f"There is no folder {str(folder)!r}.")
        self.images = sorted(path for path in (self.root / "images").iterdir() if path.suffix.lower() in IMAGES)
        if not self.images:
            raise FileNotFoundError(f"{str(self.root / 'images')!r} holds no image ({', '.join(IMAGES)}).")
        lacking = [path.name for path in self.images if not self.mask_of(path).is_file()]
        if lacking:
            raise FileNotFoundError(f"{len(lacking)} images in {str(self.root)!r} have no mask: {lacking[0]}.")

    def mask_of(self, image: Path) -> Path:
        """The mask's file."""
        return self.root / "masks" / f"{image.stem}.png"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.images[index]
        image, mask = Image.open(path).convert("RGB"), Image.open(self.mask_of(path))
        self._check(mask, image, path)
        zoom = 0.5 + 1.5 * float(torch.rand(())) if self.augmented else 1.0
        factor = zoom * self.size / max(image.size)
        width, height = (max(1, round(side * factor)) for side in image.size)
        pixels = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BILINEAR)))
        labels = torch.from_numpy(np.array(mask.resize((width, height), Image.Resampling.NEAREST), dtype=np.int64))
        values = (pixels / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
        return self._square(values.permute(2, 0, 1), labels)

    def _check(self, mask: Image.Image, image: Image.Image, path: Path) -> None:
        name = str(self.mask_of(path))
        if mask.mode not in ("L", "P"):
            raise ValueError(f"The mask {name!r} has mode {mask.mode!r}; it must hold indices of classes (L or P).")
        if mask.size != image.size:
            raise ValueError(f"The mask {name!r} has the size {mask.size}, its image {image.size}.")
        found = {value for _, value in mask.getcolors() or []} - {IGNORED}
        if max(found, default=0) >= self.classes:
            raise ValueError(f"The mask {name!r} holds the class {max(found)}, of {self.classes} classes from 0 on.")

    def _square(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A square of the image: padded, and cut out and mirrored at random if that is wanted."""
        height, width = labels.shape
        missing = (0, max(0, self.size - width), 0, max(0, self.size - height))
        image, labels = functional.pad(image, missing), functional.pad(labels, missing, value=IGNORED)
        top, left = 0, 0
        if self.augmented:
            top, left = (int(torch.randint(side - self.size + 1, ())) for side in labels.shape)
        rows, columns = slice(top, top + self.size), slice(left, left + self.size)
        image, labels = image[:, rows, columns], labels[rows, columns]
        if self.augmented and float(torch.rand(())) < 0.5:
            image, labels = image.flip(-1), labels.flip(-1)
        return image.contiguous(), labels.contiguous()
