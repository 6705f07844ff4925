"""The quickstart, on digits and on a folder of images with a checkpoint."""

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from recipes.data import digits, image_folder
from recipes.quickstart import main
from recipes.torchvision_import import import_torchvision


def rows(folder):
    """The table: the name of each network and its numbers."""
    lines = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: [float(cell) if cell else None for cell in row[1:]] for row in cells[2:]}


@pytest.fixture
def photos(tmp_path):
    """Two classes, red and blue, of noisy pictures."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 70), ("val", 10)):
        for label, channel in (("blue", 2), ("red", 0)):
            folder = tmp_path / "photos" / part / label
            folder.mkdir(parents=True)
            for index in range(count // 2):
                pixels = generator.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                pixels[..., channel] += 130
                Image.fromarray(pixels).save(folder / f"{index}.jpg")
    return tmp_path / "photos"


def test_digits_go_through_every_stage(tmp_path):
    assert main(["--epochs", "3", "--qat-epochs", "2", "--output", str(tmp_path)]) == 0
    table = rows(tmp_path)
    names = ["float", "calibrated", "trained quantized", "converted", "ONNX Runtime, qdq", "ONNX Runtime, integer"]
    assert list(table) == names
    assert min(row[0] for row in table.values()) > 94  # top-1
    assert table["calibrated"][1] > 98  # agreement with float
    assert table["converted"][4] == table["ONNX Runtime, integer"][4] == 100  # equal outputs
    assert table["converted"][2] < 0.35 * table["float"][2]  # size
    assert {node.op_type for node in onnx.load(tmp_path / "integer.onnx").graph.node} >= {
        "QLinearConv",
        "MatMulInteger",
    }
    assert "second.0" in (tmp_path / "placement.txt").read_text()
    saved = torch.load(tmp_path / "qat.pt", weights_only=True)
    assert int(saved["module.quantization.schedule.epoch"]) == 1  # of two, counted from 0


def test_a_folder_of_images_a_network_of_torchvisions_and_its_checkpoint(photos, tmp_path):
    torch.manual_seed(0)
    model = import_torchvision().models.get_model("squeezenet1_1", num_classes=2)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "float.pt")
    arguments = ["--data", str(photos), "--arch", "squeezenet1_1", "--checkpoint", str(tmp_path / "float.pt")]
    arguments += [
        "--size",
        "32",
        "--qat-epochs",
        "1",
        "--preset",
        "WC8SYMP2_AT8SYMP2",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    table = rows(tmp_path / "out")
    assert [row[4] for name, row in table.items() if name.startswith(("converted", "ONNX"))] == [100, 100, 100]
    assert table["converted"][2] < 0.29 * table["float"][2]


def test_every_fourth_digit_is_held_out_and_the_rest_calibrates():
    images = digits()
    assert (len(images.train.dataset), len(images.test.dataset), len(images.calibration.dataset)) == (1348, 449, 256)
    assert images.example.shape == (64, 1, 16, 16)
    assert (float(images.example.min()), float(images.example.max())) == (0.0, 1.0)


def test_images_are_cropped_and_classes_are_folders(photos):
    images = image_folder(photos, size=24, batch=5, calibration=7, workers=0)
    assert (images.classes, len(images.calibration.dataset)) == (2, 7)
    assert images.example.shape == (5, 3, 24, 24)
    assert float(images.example[:, 2].mean()) > float(images.example[:, 0].mean())  # blue comes first


def test_folders_that_do_not_fit_are_named(photos):
    with pytest.raises(FileNotFoundError, match="'train' and one of test, val, validation"):
        image_folder(photos / "train")
    (photos / "val" / "red").rename(photos / "val" / "green")
    with pytest.raises(ValueError, match="not in both folders: green, red"):
        image_folder(photos)
