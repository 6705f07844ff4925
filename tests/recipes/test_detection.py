"""The detection recipe as a user runs it: what comes out of each stage is as good as what went in."""

import pytest
import torch

from recipes.detection.__main__ import main, parse
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


@pytest.mark.parametrize(
    ("kind", "width", "epochs", "least", "files"),
    [("yolo", "0.0625", "10", 45, ["model"]), ("ssd", "0.25", "12", 35, ["backbone", "head"])],
)
def test_a_detector_learns_and_loses_nothing_on_its_way_to_the_file(tmp_path, kind, width, epochs, least, files):
    options = ["--arch", kind, "--width", width, "--epochs", epochs, "--qat-epochs", "1", "--rate", "1e-2"]
    data = shapes(tmp_path, 128, 48)
    assert main([*data, *options, "--output", str(tmp_path)]) == 0  # the files compute what was validated
    table = rows(tmp_path)
    assert list(table) == NAMES
    assert table["float"][0] > least
    assert table["calibrated"][0] > table["float"][0] - 4
    assert table["trained quantized"][0] > table["float"][0] - 5
    assert table["converted"] == table["trained quantized"]  # bit for bit
    assert table["ONNX Runtime"] == pytest.approx(table["converted"], abs=0.5)
    assert sorted(path.stem for path in tmp_path.glob("*.onnx")) == files


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


def test_what_does_not_fit_is_named(capsys):
    with pytest.raises(SystemExit):
        parse(["--train", "a.json", "images"])
    assert "--train and --val belong together" in capsys.readouterr().err
    files = ["--train", "a.json", "images", "--val", "b.json", "images"]
    assert (parse([]).size, parse(files).size, parse([*files, "--size", "64"]).size) == (96, 320, 64)
    with pytest.raises(ValueError, match="size of the images is 100; the YOLO network needs a multiple of 32"):
        DETECTORS["yolo"].build(3, 100)
    with pytest.raises(ValueError, match="depth is 2; only that of the YOLO network"):
        DETECTORS["ssd"].build(3, 64, depth=2)


def test_ssdlite_is_torchvisions_and_takes_another_size():
    model = DETECTORS["ssdlite"].build(90, 320)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_440_060  # as torchvision says of its weights
    small = DETECTORS["ssdlite"].build(3, 96, 0.25).eval()
    images, targets = torch.rand(2, 3, 96, 96), [{"boxes": torch.empty(0, 4), "labels": torch.empty(0).long()}] * 2
    assert small.transform([images[0]])[0].tensors.shape == (1, 3, 96, 96)
    assert {tuple(found["boxes"].shape[1:]) for found in DETECTORS["ssdlite"].detect(small, images)} == {(4,)}
    assert set(DETECTORS["ssdlite"].loss(small.train(), images, targets)) == {"bbox_regression", "classification"}
