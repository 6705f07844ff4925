"""A network and images in files, as a user has them."""

import pytest
import torch
from PIL import Image

from recipes.benchmarks import subjects


def image_folders(root, numbers, size=8):
    """Images whose red is their number, in two classes in turn."""
    for split in ("train", "test"):
        for place, number in enumerate(numbers):
            folder = root / split / ("cat", "dog")[place % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (size, size), (number, 0, 51)).save(folder / f"{number}.png")


NETWORK = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""


@pytest.fixture
def files(tmp_path):
    """Arguments of `from_files`."""
    (tmp_path / "nets.py").write_text(NETWORK)
    image_folders(tmp_path / "photos", [10, 9, 100, 2])
    path = f"{tmp_path / 'nets.py'}:Net"
    torch.save(subjects.load_class(path)().state_dict(), tmp_path / "weights.pt")
    return path, tmp_path / "weights.pt", tmp_path / "photos"
