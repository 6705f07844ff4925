"""Trained networks and the images to judge them on: the user's own, or one trained on handwritten digits here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

import edgeq
from recipes.data import DEVIATION, MEAN, TEST_FOLDERS, digits
from recipes.digits_network import DigitsNetwork
from recipes.networks import load_class
from recipes.torchvision_import import import_torchvision
from recipes.training import train

CALIBRATION_IMAGES, RECOVERY_IMAGES, BATCH = 256, 1024, 64  # of the protocol


@dataclass(frozen=True)
class Trained:
    """A float network in eval mode, batches of images to calibrate it on, (images, labels) to judge it by, batches of
    images to recover it from, which `samples` gives, and (images, labels) to train it with.
    """

    name: str
    model: nn.Module
    calibration: list[Tensor]
    test: DataLoader
    recovery: list[Tensor] | None = None
    training: DataLoader | None = None

    @property
    def samples(self) -> list[Tensor]:
        """What a recovery sees; what calibrates does where there is nothing else."""
        return self.calibration if self.recovery is None else self.recovery


def handwritten_digits(epochs: int = 10) -> Trained:
    """A small network, trained here on scikit-learn's digits, which takes seconds."""
    images = digits()
    torch.manual_seed(0)
    model = DigitsNetwork(images.classes)
    train(model, images.train, epochs, 0.1, "float training")
    title, dataset = "a small network on handwritten digits", images.train.dataset
    recovery = first_images(dataset, RECOVERY_IMAGES)
    return Trained(title, model, first_images(dataset), images.test, recovery, images.train)


def from_files(
    network: str,
    weights: str | Path,
    images: str | Path,
    mean: tuple[float, ...] = MEAN,
    deviation: tuple[float, ...] = DEVIATION,
    crop: int | None = None,
    test_images: int | None = None,
) -> Trained:
    """The class `network`, "file.py:ClassName", built without arguments, with the state dict `weights`, and images
    in `images`/train/<class>/ and `images`/test/<class>/ (or val), by the order of their file names.

    RGB in 0..1 is normalized with `mean` and `deviation`. Images are taken as they are, all of one size; with
    `crop` their shorter side becomes 8/7 of it, and the centre is taken. `test_images` limits their number.
    """
    model = load_class(network)()
    edgeq.load_weights(model, weights, strict=True)
    root = Path(images)
    test_folder = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if test_folder is None or not (root / "train").is_dir():
        raise FileNotFoundError(f"{str(root)!r} needs the folders 'train' and one of {', '.join(TEST_FOLDERS)}.")
    training, test = (by_name(folder, mean, deviation, crop) for folder in (root / "train", test_folder))
    chosen = Subset(test, range(min(len(test), test_images or len(test))))
    name = f"{network.partition(':')[2]} on {len(chosen)} images of {root.name}"
    recovery = first_images(training, RECOVERY_IMAGES)
    moved = by_name(root / "train", mean, deviation, crop, moves=True)
    shuffled = DataLoader(moved, BATCH, shuffle=True, drop_last=len(moved) > BATCH)  # a last batch may be too small
    return Trained(name, model.eval(), first_images(training), DataLoader(chosen, BATCH), recovery, shuffled)


def by_name(
    folder: Path, mean: tuple[float, ...], deviation: tuple[float, ...], crop: int | None, moves: bool = False
) -> Subset:
    """The images of all classes in the order of their file names, numbers by value. To train with, an image `moves`: it
    is mirrored and shifted at random.
    """
    import_torchvision()
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    cut = [transforms.Resize(crop * 8 // 7), transforms.CenterCrop(crop)] if crop else []
    shift = transforms.RandomAffine(0, translate=(0.125, 0.125))
    moved = [transforms.RandomHorizontalFlip(), shift] if moves else []
    finish = [transforms.ToTensor(), transforms.Normalize(mean, deviation)]
    dataset = ImageFolder(folder, transforms.Compose([*cut, *moved, *finish]))
    stems = [Path(path).stem.zfill(32) for path, _ in dataset.samples]
    return Subset(dataset, sorted(range(len(stems)), key=stems.__getitem__))


def first_images(dataset: Dataset[Any], count: int = CALIBRATION_IMAGES) -> list[Tensor]:
    """The protocol's choice: the first images in batches."""
    size = min(count, len(dataset))  # type: ignore[arg-type]
    return [images for images, _ in DataLoader(Subset(dataset, range(size)), BATCH)]
