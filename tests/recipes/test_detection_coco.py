"""Annotations in COCO's format, and what is done to images before they go into a network."""

import json

import pytest
import torch
from PIL import Image

from recipes.detection.batches import GREY, Scaled, loader, place
from recipes.detection.coco import read_coco
from recipes.detection.errors import AnnotationError
from recipes.detection.shapes import CLASSES, write_shapes

ENTRIES = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 20, "height": 10},
        {"id": 3, "file_name": "b.png", "width": 10, "height": 10},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [2, 3, 4, 5]},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [-4, 6.5, 9, 90], "iscrowd": 0},
        {"id": 3, "image_id": 7, "category_id": 5, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"id": 4, "image_id": 7, "category_id": 5, "bbox": [30, 0, 9, 9]},
    ],
    "categories": [{"id": 90, "name": "cat"}, {"id": 5, "name": "dog"}],
}


@pytest.fixture
def files(tmp_path):
    """Writes annotations beside two images and returns where both are."""
    for name, size in (("a.png", (20, 10)), ("b.png", (10, 10))):
        Image.new("RGB", size, (255, 0, 0)).save(tmp_path / name)

    def write(entries):
        path = tmp_path / "annotations.json"
        path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
        return path, tmp_path

    return write


def changed(kind, place, **values):
    """The entries, one of them with other values; None takes a key away."""
    entries = json.loads(json.dumps(ENTRIES))
    entries[kind][place].update(values)
    entries[kind][place] = {key: value for key, value in entries[kind][place].items() if value is not None}
    return entries


def test_boxes_are_corners_clipped_to_the_image_crowds_are_left_out_and_labels_are_dense(files):
    coco = read_coco(*files(ENTRIES))
    assert (len(coco), coco.classes, coco.dropped) == (2, ["dog", "cat"], 1)  # in the order of their ids
    assert [path.name for path in coco.paths] == ["a.png", "b.png"]
    assert coco.targets[0]["boxes"].tolist() == [[2, 3, 6, 8], [0, 6.5, 5, 10]]
    assert coco.targets[0]["labels"].tolist() == [1, 0]
    assert coco.targets[1]["boxes"].shape == (0, 4)
    assert coco.targets[1]["labels"].dtype == torch.int64


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{", "is no JSON"),
        ([], "the lists images, annotations, categories; it lacks images, annotations, categories"),
        ({key: ENTRIES[key] for key in ("images", "categories")}, "it lacks annotations"),
        ({**ENTRIES, "images": [4]}, "an entry of images is 4"),
        ({**ENTRIES, "images": []}, "has no image"),
        ({**ENTRIES, "categories": [ENTRIES["categories"][0]] * 2}, "same category id"),
        (changed("images", 0, width=None), "image 7 has no 'width'"),
        (changed("images", 0, file_name=None), "image 7 has no 'file_name'"),
        (changed("images", 0, file_name=5), "image 7: 'file_name' is 5, not a string"),
        (changed("images", 0, height="10"), "image 7: 'height' is '10', not an integer"),
        (changed("annotations", 1, image_id=8), "annotation 2: 'image_id' is 8, which is not in the file"),
        (changed("annotations", 1, category_id=1), "annotation 2: 'category_id' is 1, which is not in the file"),
        (changed("annotations", 0, bbox=None), "annotation 1 has no 'bbox'"),
        (changed("annotations", 0, bbox=[1, 2, 3]), r"annotation 1: 'bbox' is \[1, 2, 3\]; it must be \[x, y, width"),
        (changed("annotations", 0, bbox=[1, 2, -3, 4]), "annotation 1: 'bbox'"),
        (changed("annotations", 0, bbox=[1, 2, float("nan"), 4]), "annotation 1: 'bbox'"),
        (changed("annotations", 0, bbox=[1, 2, True, 4]), "annotation 1: 'bbox'"),
    ],
)
def test_entries_that_make_no_sense_are_named(files, entries, message):
    with pytest.raises(AnnotationError, match=message):
        read_coco(*files(entries))


def test_images_that_are_missing_or_of_another_size_are_named(files):
    with pytest.raises(AnnotationError, match=r"1 of 2 images are not there, first .*c\.png"):
        read_coco(*files(changed("images", 1, file_name="c.png")))
    coco = read_coco(*files(changed("images", 1, width=12)))
    with pytest.raises(AnnotationError, match=r"b\.png has 10x10 pixels, its annotations say 12x10"):
        coco.image(1)


@pytest.mark.parametrize("share", [0, 0.5], ids=["no image", "half an image"])
def test_an_image_that_cannot_be_read_is_named(files, share):
    path, folder = files(ENTRIES)
    Image.effect_noise((20, 10), 50).save(folder / "a.png")
    coco, whole = read_coco(path, folder), (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(AnnotationError, match=r"a\.png cannot be read: "):
        coco.image(0)


def test_annotations_are_summed_up(files):
    said = "2 images with 2 objects of 2 classes (left out: 1 outside of their images)"
    assert str(read_coco(*files(ENTRIES))) == said


def test_the_longer_side_fills_the_canvas_and_boxes_go_along(files):
    coco = read_coco(*files(ENTRIES))
    pixels, target = Scaled(coco, 40, augmented=False)[0]
    assert pixels.shape == (3, 40, 40)
    assert pixels[:, 10, 10].tolist() == [1, 0, 0]
    assert (pixels[:, 30, 30] * 255).round().tolist() == list(GREY)
    assert target["boxes"].tolist() == [[4, 6, 12, 16], [0, 13, 10, 20]]


def test_a_flip_mirrors_image_and_boxes():
    image = Image.new("RGB", (10, 10))
    image.paste((255, 255, 255), (1, 2, 4, 6))
    target = {"boxes": torch.tensor([[1.0, 2, 4, 6]]), "labels": torch.tensor([0])}
    pixels, flipped = place(image, target, 10, flip=True)
    assert flipped["boxes"].tolist() == [[6, 2, 9, 6]]
    assert torch.equal(pixels[0].nonzero().amax(0), torch.tensor([5, 8]))
    assert float(pixels[0, 2:6, 6:9].min()) == 1


def test_what_is_scaled_beyond_the_canvas_is_clipped_or_left_out():
    boxes = torch.tensor([[0.0, 0, 2, 2], [4, 4, 6, 6], [0, 0, 6, 10]])
    target = {"boxes": boxes, "labels": torch.tensor([0, 1, 2])}
    _, placed = place(Image.new("RGB", (10, 10)), target, 10, scale=2.0, at=(0.5, 0.5))  # a window from 5 to 15
    assert placed["labels"].tolist() == [1, 2]
    assert placed["boxes"].tolist() == [[3, 3, 7, 7], [0, 0, 7, 10]]


def test_augmentation_follows_from_the_seed_and_keeps_boxes_around_their_shapes(tmp_path):
    coco = read_coco(*write_shapes(tmp_path, 6, 64, seed=0))
    assert coco.classes == list(CLASSES)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(next(iter(loader(Scaled(coco, 64, augmented=True), 6, True, 0))))
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][0], runs[2][0])
    for images, targets in runs[1:]:
        for pixels, target in zip(images, targets, strict=True):
            for x1, y1, x2, y2 in target["boxes"].round().int().tolist():
                inside = pixels[:, y1:y2, x1:x2]
                assert float(((inside < 50 / 255) | (inside > 170 / 255)).float().mean()) > 0.35  # noise lies between
