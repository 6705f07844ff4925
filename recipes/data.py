"""Images to train and to measure on: scikit-learn's handwritten digits, or a folder of images a class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from recipes.loop import processes
from recipes.torchvision_import import import_torchvision

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's weights expect
TEST_FOLDERS = ("test", "val", "validation")


@dataclass
class Images:
    """Loaders of (images (batch, channels, height, width), labels (batch, ...)): shuffled and augmented for
    training, plain for calibration and for the test. Of several processes that train together each has a part of the
    images to train on and of those for the test.
    """

    name: str
    train: DataLoader
    calibration: DataLoader
    test: DataLoader
    classes: int

    @property
    def example(self) -> Tensor:
        """One batch of test images."""
        return next(iter(self.test))[0]


def digits(batch: int = 64, calibration: int = 256) -> Images:
    """1,797 handwritten digits of 8 by 8 pixels, shown as 1x16x16 in 0..1; every fourth is for the test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).float().div(16).unsqueeze(1)
    images = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear")
    labels = torch.from_numpy(found.target).long()
    held_out = torch.arange(len(labels)) % 4 == 3
    train = TensorDataset(images[~held_out], labels[~held_out])
    test = TensorDataset(images[held_out], labels[held_out])
    return loaders("handwritten digits", train, train, test, 10, batch, calibration, workers=0)


def image_folder(
    root: str | Path,
    size: int = 224,
    batch: int = 64,
    calibration: int = 256,
    workers: int = 2,
    crop: float = 0.5,
    flip: bool = True,
) -> Images:
    """Images in `root`/train/<class>/ and `root`/test/<class>/ (or val), cropped to 3 x size x size and
    normalized with ImageNet's statistics. Those for training show at least the part `crop` of their area, and half
    of them mirrored if `flip`. Raises FileNotFoundError when a folder is missing.
    """
    import_torchvision()
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    root = Path(root)
    test_folder = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if test_folder is None or not (root / "train").is_dir():
        raise FileNotFoundError(f"{str(root)!r} needs the folders 'train' and one of {', '.join(TEST_FOLDERS)}.")
    finish = [transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
    mirrored = [transforms.RandomHorizontalFlip()] if flip else []
    augmented = transforms.Compose([transforms.RandomResizedCrop(size, scale=(crop, 1.0)), *mirrored, *finish])
    plain = transforms.Compose([transforms.Resize(size + size // 8), transforms.CenterCrop(size), *finish])
    train, unchanged = ImageFolder(root / "train", augmented), ImageFolder(root / "train", plain)
    test = ImageFolder(test_folder, plain)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"{str(root)!r}: these classes are not in both folders: {', '.join(odd)}.")
    return loaders(root.name, train, unchanged, test, len(train.classes), batch, calibration, workers)


def loaders(
    name: str,
    train: Dataset[Any],
    unchanged: Dataset[Any],
    test: Dataset[Any],
    classes: int,
    batch: int,
    calibration: int,
    workers: int,
) -> Images:
    """Batches of three datasets of images and labels; `unchanged` are those to train on without augmentation, of which
    `calibration` are for calibration.
    """
    size = len(unchanged)  # type: ignore[arg-type]
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:calibration].tolist()

    def loader(dataset: Dataset[Any], **options: Any) -> DataLoader:
        # Workers start anew with each epoch: those that persist would go on with random numbers of their own, and
        # a training that is resumed could not repeat them.
        return DataLoader(dataset, batch, num_workers=workers, **options)

    together = processes.count()
    sampler = DistributedSampler(train, drop_last=True) if together > 1 else None
    shuffled = loader(train, shuffle=sampler is None, sampler=sampler, drop_last=size > batch * together)
    part = Subset(test, range(processes.rank(), len(test), together))  # type: ignore[arg-type]
    return Images(name, shuffled, loader(Subset(unchanged, chosen)), loader(part), classes)
