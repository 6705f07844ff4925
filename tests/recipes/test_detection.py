"""The detection recipe as a user runs it: what comes out of each stage is as good as what went in."""

import pytest
import torch

from recipes.detection.__main__ import evaluate, main, parse
from recipes.detection.coco import read_coco
from recipes.detection.detectors import DETECTORS
from recipes.detection.shapes import write_shapes

NAMES = ["float", "calibrated", "trained quantized", "converted", "ONNX Runtime"]


def shapes(folder, train, val):
    """Arguments that name annotated images of 64 pixels, so many of them."""
    train, val = write_shapes(folder / "train", train, 64, seed=0), write_shapes(folder / "val", val, 64, seed=1)
    return ["--train", *map(str, train), "--val", *map(str, val), "--size", "64", "--workers", "0", "--batch", "8"]


def rows(folder):
    """The table: AP@0.5 and AP@0.5:0.95 of each network."""
    lines = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: [float(cell) for cell in row[1:]] for row in cells}


def check_that_it_learns(folder, kind, images, options, least):
    """Runs the program on so many images and asserts what it found on others, three for each eight."""
    data = [*shapes(folder, images, images * 3 // 8), "--arch", kind, *options.split(), "--output", str(folder)]
    assert main(data) == 0  # the files compute what was validated
    table = rows(folder)
    last = "trained quantized" if "trained quantized" in table else "calibrated"
    assert list(table) == [name for name in NAMES if name in table or name != "trained quantized"]
    assert untrained(data) < 2
    assert table["float"][0] > least
    assert table["calibrated"][0] > table["float"][0] - 4
    assert table[last][0] > table["float"][0] - 5
    assert table["converted"] == table[last]  # bit for bit
    assert table["ONNX Runtime"] == pytest.approx(table["converted"], abs=0.5)
    assert sorted(path.stem for path in folder.glob("*.onnx")) == (
        ["model"] if kind == "yolo" else ["backbone", "head"]
    )


def untrained(arguments):
    """AP@0.5 of the network that the training begins with."""
    options = parse(arguments)
    torch.manual_seed(options.seed)
    detector = DETECTORS[options.arch]
    model = detector.build(3, options.size, options.width).eval()
    return evaluate(model, detector, read_coco(*options.val), options, "").at_50


@pytest.mark.parametrize(
    ("kind", "images", "options", "least"),
    [
        ("yolo", 128, "--width 0.0625 --epochs 10 --qat-epochs 1 --rate 1e-2", 45),
        ("ssd", 128, "--width 0.25 --epochs 12 --qat-epochs 1 --rate 1e-2", 35),
        # Its finest map is at 1/16, so the images are enlarged; its quantized training is in the longer test below.
        ("ssdlite", 96, "--width 0.25 --epochs 4 --qat-epochs 0 --rate 5e-3 --size 224 --batch 4", 15),
    ],
    ids=["yolo", "ssd", "ssdlite"],
)
def test_a_detector_learns_and_loses_nothing_on_its_way_to_the_file(tmp_path, kind, images, options, least):
    check_that_it_learns(tmp_path, kind, images, options, least)


@pytest.mark.sweep
def test_ssdlite_that_is_trained_longer_and_then_quantized_loses_nothing(tmp_path):
    options = "--width 0.25 --epochs 8 --qat-epochs 2 --rate 5e-3 --size 224 --batch 4"
    check_that_it_learns(tmp_path, "ssdlite", 128, options, 60)


def test_a_finished_run_is_resumed_without_training_and_a_checkpoint_begins_another(tmp_path, capsys):
    data = shapes(tmp_path, 16, 8)
    options = ["--arch", "ssd", "--width", "0.125", "--epochs", "1", "--qat-epochs", "0"]
    main([*data, *options, "--output", str(tmp_path / "first")])
    first = rows(tmp_path / "first")
    assert list(first) == ["float", "calibrated", "converted", "ONNX Runtime"]
    main([*data, *options, "--output", str(tmp_path / "first"), "--resume"])
    assert rows(tmp_path / "first") == first
    weights = torch.load(tmp_path / "first" / "float.pt")["module"]
    torch.save(weights, tmp_path / "weights.pt")
    options[options.index("--epochs") + 1] = "0"
    main([*data, *options, "--checkpoint", str(tmp_path / "weights.pt"), "--output", str(tmp_path / "second")])
    assert rows(tmp_path / "second") == first
    assert f"{len(weights)} " in capsys.readouterr().out  # the report of what was loaded


def test_ssdlite_is_torchvisions_and_takes_another_size():
    model = DETECTORS["ssdlite"].build(90, 320)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_440_060  # as torchvision says of its weights
    small = DETECTORS["ssdlite"].build(3, 96, 0.25).eval()
    images, targets = torch.rand(2, 3, 96, 96), [{"boxes": torch.empty(0, 4), "labels": torch.empty(0).long()}] * 2
    assert small.transform([images[0]])[0].tensors.shape == (1, 3, 96, 96)
    assert {tuple(found["boxes"].shape[1:]) for found in DETECTORS["ssdlite"].detect(small, images)} == {(4,)}
    assert set(DETECTORS["ssdlite"].loss(small.train(), images, targets)) == {"bbox_regression", "classification"}
