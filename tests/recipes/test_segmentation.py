"""The training of a segmentation network: overlap, files, auxiliary classifier, resuming, masks, bad input."""

import re

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from recipes.data import DEVIATION, MEAN, Images
from recipes.masks import Masks
from recipes.segmentation import main, overlap_of
from recipes.segmentation_networks import segmenter
from tests.recipes.pictures import COLOURS, write_shapes
from tests.recipes.test_classification import flat, states, stop_before
from tests.states import changed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Arguments of the program, without what a run has of its own."""
    folder = write_shapes(tmp_path_factory.mktemp("shapes") / "all", 48, 16)
    options = {"--data-path": folder, "--num-classes": 3, "--size": 64, "--batch-size": 8, "--workers": 0}
    return [str(word) for pair in options.items() for word in pair] + ["--device", "cpu"]


@pytest.fixture(scope="module")
def lraspp(shapes, tmp_path_factory):
    """Arguments and weights of an LRASPP that was trained in float by the same program."""
    folder = tmp_path_factory.mktemp("lraspp")
    words = [*shapes, "--model", "lraspp_small"]
    assert main([*words, "--float", "--epochs", "5", "--lr", "0.1", "--output-dir", str(folder)]) == 0
    return [*words, "--weights", str(folder / "weights.pth")]


@pytest.fixture(scope="module")
def deeplab(shapes, tmp_path_factory):
    """The same of a DeepLabV3 with an auxiliary classifier."""
    folder = tmp_path_factory.mktemp("deeplab")
    words = [*shapes, "--model", "deeplabv3_small", "--aux-loss"]
    assert main([*words, "--float", "--epochs", "4", "--lr", "0.05", "--output-dir", str(folder)]) == 0
    return [*words, "--weights", str(folder / "weights.pth")]


def rows(folder):
    """Mean IoU and pixel accuracy of each network."""
    found = re.findall(r"^\| (.+?) +\| +([\d.]+) \| +([\d.]+) \|$", (folder / "table.md").read_text(), re.MULTILINE)
    return {name: (float(mean_iou), float(accuracy)) for name, mean_iou, accuracy in found}


def shown(text, title):
    """The mean IoUs that were printed with a title."""
    return [float(found) for found in re.findall(rf"^{title}.*mean IoU ([\d.]+) %", text, re.MULTILINE)]


def test_quantized_training_keeps_the_overlap_and_the_file_computes_what_was_validated(lraspp, tmp_path, capsys):
    more = ["--epochs", "2", "--lr", "0.02", "--amp", "--preset", "WC8SYMP2_AT8SYMP2"]
    assert main([*lraspp, *more, "--output-dir", str(tmp_path)]) == 0
    before, after = shown(capsys.readouterr().out, "(?:float|epoch 2 of 2)")
    assert before > 90
    assert after > before - 3
    table = rows(tmp_path)
    assert list(table) == ["float", "simulated", "converted", "ONNX Runtime"]
    assert table["simulated"] == table["converted"] == table["ONNX Runtime"]
    assert table["simulated"][0] == after
    assert abs(table["float"][0] - after) < 3
    assert len(re.findall("fused: passed, 0 of", (tmp_path / "table.md").read_text())) == 2  # with and without fusions


def test_the_auxiliary_classifier_is_trained_and_not_exported(deeplab, tmp_path, capsys):
    more = ["--epochs", "1", "--lr", "0.02", "--norm-weight-decay", "0"]
    assert main([*deeplab, *more, "--output-dir", str(tmp_path)]) == 0
    before, after = shown(capsys.readouterr().out, "(?:float|epoch 1 of 1)")
    assert before > 70
    assert after > before - 10
    assert rows(tmp_path)["simulated"][0] == rows(tmp_path)["ONNX Runtime"][0] == after
    start = torch.load(deeplab[-1], weights_only=True)
    saved = states(tmp_path, "weights.pth")
    assert not torch.equal(saved["aux_classifier.4.weight"], start["aux_classifier.4.weight"])
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [output.name for output in graph.output] == ["out"]
    assert not [node.name for node in graph.node if "aux" in node.name]


def test_calibration_needs_no_training(deeplab, tmp_path, capsys):
    assert main([*deeplab, "--calibrate", "--output-dir", str(tmp_path)]) == 0
    before, after = shown(capsys.readouterr().out, "(?:float|calibrated)")
    assert after > before - 2
    assert rows(tmp_path)["float"][0] == before
    assert rows(tmp_path)["ONNX Runtime"][0] == pytest.approx(after, abs=0.1)


def test_a_network_of_torchvisions_goes_the_same_way(shapes, tmp_path):
    folder = write_shapes(tmp_path / "some", 8, 2)
    torch.manual_seed(0)
    model = segmenter("lraspp_mobilenet_v3_large", 3)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    more = ["--weights", str(tmp_path / "weights.pth"), "--calibrate", "--output-dir", str(tmp_path / "out")]
    more += ["--data-path", str(folder)]
    assert main([*shapes, "--model", "lraspp_mobilenet_v3_large", *more]) == 0
    saved = states(tmp_path / "out", "weights.pth")
    assert saved.keys() > model.state_dict().keys()
    table = rows(tmp_path / "out")
    assert table["simulated"] == table["converted"]
    assert table["ONNX Runtime"][1] == pytest.approx(table["simulated"][1], abs=0.5)


def test_a_training_that_was_killed_resumes_bit_for_bit(lraspp, tmp_path, monkeypatch):
    extras = ["--epochs", "2", "--lr", "0.02", "--opt", "adamw", "--model-ema", "--model-ema-steps", "2", "--amp"]
    words = [*lraspp, *extras, "--model-ema-decay", "0.99"]
    assert main([*words, "--output-dir", str(tmp_path / "straight")]) == 0
    with monkeypatch.context() as context:
        stop_before(1, context)
        with pytest.raises(KeyboardInterrupt):
            main([*words, "--output-dir", str(tmp_path / "killed")])
    resume = ["--resume", str(tmp_path / "killed" / "checkpoint.pth"), "--output-dir", str(tmp_path / "killed")]
    torch.manual_seed(123)
    assert main([*words, *resume]) == 0
    assert changed(flat(states(tmp_path / "straight")), flat(states(tmp_path / "killed"))) == []
    average, raw = states(tmp_path / "killed", "weights.pth"), states(tmp_path / "killed")["model"]
    assert "backbone.stem.0.0.weight" in changed(average, raw)


# ---- overlap


def test_the_mean_is_over_the_classes_that_occur_and_ignored_pixels_do_not_count():
    labels = torch.tensor([[[0, 0, 1, 1], [0, 255, 255, 1]]])
    found = torch.tensor([[[0, 1, 1, 1], [0, 2, 1, 0]]])
    images = Images("", [], [], [(torch.nn.functional.one_hot(found, 4).permute(0, 3, 1, 2), labels)], 4)
    measured = overlap_of(lambda logits: logits, images, CPU)
    # class 0: 2 right of a union of 4; class 1: 2 of 4; class 2 only where it does not count; class 3 nowhere
    assert (measured.mean_iou, measured.accuracy, measured.images) == (50.0, pytest.approx(400 / 6), 1)


# ---- images and masks


def test_a_mask_lies_on_its_image(tmp_path):
    root = write_shapes(tmp_path / "all", 4, 1)
    for augmented in (False, True):
        for seed in range(3):
            torch.manual_seed(seed)
            for image, labels in (Masks(root / "train", 3, 48, augmented)[index] for index in range(4)):
                assert (image.shape, labels.shape, labels.dtype) == ((3, 48, 48), (48, 48), torch.int64)
                pixels = 255 * (image * torch.tensor(DEVIATION)[:, None, None] + torch.tensor(MEAN)[:, None, None])
                for label, colour in COLOURS.items():
                    chosen = pixels[:, labels == label]
                    if chosen.shape[1] > 60:
                        assert chosen.median(1).values.tolist() == pytest.approx(colour, abs=30)


def test_without_augmentation_the_longer_side_fits_and_the_rest_is_ignored(tmp_path):
    root = write_shapes(tmp_path / "all", 1, 1)  # 72 wide, 64 high
    image, labels = Masks(root / "val", 3, 36, False)[0]
    assert bool((labels[32:] == 255).all())
    assert bool((labels[:32] != 255).float().mean() > 0.5)
    assert bool((image[:, 32:] == 0).all())


def test_the_same_seed_cuts_the_same_square(tmp_path):
    masks = Masks(write_shapes(tmp_path / "all", 1, 1) / "train", 3, 32, True)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(masks[0])
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][0], found[2][0])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.fromarray(np.full((64, 72), 3, np.uint8)), "0.png' holds the class 3, of 3 classes"),
        (Image.new("RGB", (72, 64)), "has mode 'RGB'; it must hold indices"),
        (Image.new("L", (64, 64)), r"has the size \(64, 64\), its image \(72, 64\)"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(tmp_path, mask, message):
    root = write_shapes(tmp_path / "all", 1, 1) / "train"
    mask.save(root / "masks" / "0.png")
    with pytest.raises(ValueError, match=message):
        Masks(root, 3, 32, False)[0]


def test_what_is_missing_or_unknown_is_named(shapes, tmp_path):
    words = [*shapes, "--output-dir", str(tmp_path)]
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere/train/images'"):
        main([*words, "--data-path", str(tmp_path / "nowhere")])
    root = write_shapes(tmp_path / "all", 2, 1)
    (root / "train" / "masks" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images in .* have no mask: 1.jpg"):
        main([*words, "--data-path", str(root)])
    with pytest.raises(ValueError, match=r"no network 'lraspp_resnet50'. Did you mean 'fcn_resnet50'"):
        main([*words, "--model", "lraspp_resnet50"])
    with pytest.raises(ValueError, match="'lraspp_small' has no auxiliary classifier"):
        main([*words, "--model", "lraspp_small", "--aux-loss"])
