"""The detection recipe on files and options that cannot be used: it says so at once, in a line."""

import json
from pathlib import Path

import pytest

from recipes.detection.__main__ import main, parse
from recipes.detection.detectors import DETECTORS
from recipes.detection.errors import OptionError
from recipes.detection.shapes import write_shapes


def shapes(folder):
    """Arguments that name four annotated images to train on and two to measure on."""
    train, val = write_shapes(folder / "train", 4, 64, seed=0), write_shapes(folder / "val", 2, 64, seed=1)
    return ["--train", *map(str, train), "--val", *map(str, val), "--size", "64", "--output", str(folder)]


def test_options_that_do_not_fit_are_named(capsys):
    for options, message in (
        (["--train", "a.json", "images"], "--train and --val belong together"),
        (["--qat-epochs", "-1"], "--qat-epochs must be at least 0, got -1"),
        (["--width", "0"], "--width must be greater than 0, got 0.0"),
        (["--device", "abacus"], "--device abacus cannot be used: "),
    ):
        with pytest.raises(SystemExit):
            parse(options)
        assert message in capsys.readouterr().err
    files = ["--train", "a.json", "images", "--val", "b.json", "images"]
    assert (parse([]).size, parse(files).size, parse([*files, "--size", "64"]).size) == (96, 320, 64)
    with pytest.raises(OptionError, match="size of the images is 100; the YOLO network needs a multiple of 32"):
        DETECTORS["yolo"].build(3, 100)
    with pytest.raises(OptionError, match="depth is 2; only that of the YOLO network"):
        DETECTORS["ssd"].build(3, 64, depth=2)


def test_what_cannot_be_used_ends_the_program_with_one_line_before_anything_is_trained(tmp_path, capsys):
    data = shapes(tmp_path)

    def said(*options):
        assert main([*data, *options]) == 2
        output, error = capsys.readouterr()
        assert "epoch" not in output
        assert error.count("\n") == 1
        return error

    assert "Did you mean 'WC8_AT8'" in said("--preset", "WC8_AT9")
    assert "needs a multiple of 32" in said("--size", "100")
    assert "no.pt' cannot be read" in said("--checkpoint", str(tmp_path / "no.pt"))
    (tmp_path / "empty.json").write_text('{"images": [], "annotations": []}')
    assert "empty.json must hold" in said("--val", str(tmp_path / "empty.json"), data[2])
    assert "The annotations 'nowhere.json' cannot be read: No such file" in said("--val", "nowhere.json", data[2])


def test_data_without_an_object_or_with_other_categories_is_refused(tmp_path, capsys):
    data = shapes(tmp_path)
    entries = json.loads(Path(data[4]).read_text())
    for change, message in (
        ({"annotations": []}, "There is no object in any image for validation."),
        (
            {"categories": [{"id": number, "name": "cat"} for number in (1, 2, 3)]},
            "The categories differ: ['rectangle'",
        ),
    ):
        Path(data[4]).write_text(json.dumps({**entries, **change}))
        assert main(data) == 2
        output, error = capsys.readouterr()
        assert message in error
        assert output.startswith("training: 4 images with ")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_broken_image_is_said_in_one_line_whoever_reads_it(tmp_path, capsys, workers):
    data = shapes(tmp_path)
    image = Path(data[2]) / "00002.png"
    image.write_bytes(image.read_bytes()[:900])
    assert main([*data, "--arch", "ssd", "--width", "0.125", "--workers", workers]) == 2
    assert capsys.readouterr().err == f"error: {image} cannot be read: image file is truncated.\n"
