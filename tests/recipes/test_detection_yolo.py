"""The YOLO network, its boxes, and what it is asked to learn, against closed forms."""

import math

import pytest
import torch

from recipes.detection.yolo import FIRST_DISTANCE, PRIOR, Yolo
from recipes.detection.yolo_boxes import decode, detections, encode, flatten
from recipes.detection.yolo_loss import assign, giou, yolo_loss

TINY = {"width": 0.0625, "depth": 0.34}


def maps(classes=2, size=64, level=-20.0):
    """Raw maps that say everywhere: nothing, and a box of one stride around the point."""
    sides = [size // stride for stride in (8, 16, 32)]
    half = math.log(math.expm1(0.5))
    return [(torch.full((1, classes, n, n), level), torch.full((1, 4, n, n), half)) for n in sides]


def test_maps_are_at_an_eighth_a_sixteenth_and_a_thirty_second_and_begin_with_the_prior():
    torch.manual_seed(0)
    model = Yolo(3, **TINY).eval()
    with torch.no_grad():
        result = model(torch.rand(2, 3, 64, 96))
    assert [tuple(classes.shape) for classes, _ in result] == [(2, 3, 8, 12), (2, 3, 4, 6), (2, 3, 2, 3)]
    assert [tuple(boxes.shape) for _, boxes in result] == [(2, 4, 8, 12), (2, 4, 4, 6), (2, 4, 2, 3)]
    classes, boxes, _, _ = flatten(result)
    assert float(classes.sigmoid().mean()) == pytest.approx(PRIOR, rel=0.2)
    assert float(torch.nn.functional.softplus(boxes).mean()) == pytest.approx(FIRST_DISTANCE, rel=0.2)


def test_width_scales_channels_and_depth_blocks():
    small, deep = Yolo(80, 0.25, 0.34), Yolo(80, **{**TINY, "depth": 1.0})
    assert [block.leave[0].out_channels for block in (small.to_8[2], small.to_8[4], small.to_16[1])] == [32, 64, 128]
    assert [len(block.blocks) for block in (small.to_8[2], small.to_16[1], small.up_8)] == [1, 2, 1]
    assert [len(block.blocks) for block in (deep.to_8[2], deep.to_16[1], deep.up_8)] == [3, 6, 3]
    assert small.head[2].boxes[-1].weight.shape == (4, 64, 1, 1)


def test_points_are_the_centres_of_their_cells_level_after_level():
    _, _, centres, strides = flatten(maps())
    assert centres[[0, 1, 8, 63, 64, 80]].tolist() == [[4, 4], [12, 4], [4, 12], [60, 60], [8, 8], [16, 16]]
    assert strides.flatten().tolist() == [8] * 64 + [16] * 16 + [32] * 4


def test_decoding_is_the_inverse_of_encoding():
    torch.manual_seed(0)
    _, _, centres, strides = flatten(maps())
    boxes = torch.cat([centres - 100 * torch.rand(84, 2) - 0.1, centres + 100 * torch.rand(84, 2) + 0.1], 1)
    assert torch.allclose(decode(encode(boxes, centres, strides), centres, strides), boxes, atol=1e-4)
    raw = 2 * torch.randn(84, 4)
    assert torch.allclose(encode(decode(raw, centres, strides), centres, strides), raw, atol=1e-3)
    middle = decode(torch.full((1, 4), math.log(math.expm1(2))), torch.tensor([[20.0, 28.0]]), torch.tensor([[8.0]]))
    assert torch.allclose(middle, torch.tensor([[4.0, 12.0, 36.0, 44.0]]), atol=1e-5)


def test_the_best_of_boxes_on_the_same_object_stays_in_each_class():
    given = maps()
    classes, boxes = given[0]
    for x, score in ((3, 4.0), (4, 2.0)):  # neighbours that say the same box
        classes[0, 1, 3, x] = score
        boxes[0, :, 3, x] = encode(
            torch.tensor([[16.0, 16, 48, 40]]), torch.tensor([[8.0 * x + 4, 28.0]]), torch.tensor([[8.0]])
        )
    classes[0, 0, 3, 3] = 3.0
    (found,) = detections(given)
    assert found["labels"].tolist() == [1, 0]
    assert found["scores"].tolist() == pytest.approx([1 / (1 + math.exp(-4)), 1 / (1 + math.exp(-3))])
    assert torch.allclose(found["boxes"], torch.tensor([[16.0, 16, 48, 40]]).expand(2, 4), atol=1e-4)


def test_giou_of_boxes():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2]])
    others = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [4, 0, 6, 2]])
    assert giou(boxes, others).tolist() == pytest.approx([1, 1 / 3, -1 / 3])  # 12 around both, 4 of it empty


def test_the_points_that_agree_best_with_an_object_are_responsible_for_it():
    centres = torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0], [60.0, 60.0]])
    target = {"boxes": torch.tensor([[0.0, 0.0, 24.0, 8.0]]), "labels": torch.tensor([1])}
    boxes = torch.tensor([[0.0, 0, 24, 8], [0, 0, 12, 8], [0, 0, 24, 8], [0, 0, 24, 8]])
    scores = torch.tensor([[0.0, 0.64], [0.0, 0.64], [0.9, 0.16], [0.0, 1.0]])
    owner, worth = assign(scores, boxes, centres, target)
    assert owner.tolist() == [0, 0, 0, -1]  # the last says the right thing outside of the object
    # alignment 0.8 * 1^6, 0.8 * 0.5^6 and 0.4 * 1^6; the best is asked for its IoU, 1
    assert worth.tolist() == pytest.approx([1, 0.5**6, 0.5, 0])


def test_a_point_in_two_objects_learns_the_one_that_it_overlaps_more():
    centres = torch.tensor([[8.0, 8.0], [30.0, 30.0]])
    truth = torch.tensor([[0.0, 0, 64, 64], [0, 0, 16, 16]])
    boxes = torch.tensor([[0.0, 0, 16, 32], [0, 0, 64, 48]])
    owner, worth = assign(torch.ones(2, 1), boxes, centres, {"boxes": truth, "labels": torch.tensor([0, 0])})
    assert owner.tolist() == [1, 0]
    assert worth.tolist() == pytest.approx([0.5, 0.75])


def test_ten_points_of_an_object_learn_and_even_the_smallest_one_has_a_point():
    _, raw, centres, strides = flatten(maps())
    boxes, scores = decode(raw[0], centres, strides), torch.full((84, 2), 0.01)
    truth = {"boxes": torch.tensor([[0.0, 0, 64, 64], [40, 40, 40.5, 40.5]]), "labels": torch.tensor([0, 1])}
    scores[:, 0] += 0.001 * torch.arange(84)  # no ties
    owner, _ = assign(scores, boxes, centres, truth)
    assert int((owner == 0).sum()) == 10
    assert {tuple(centre) for centre in centres[owner == 1].tolist()} <= {
        (36, 36),
        (44, 36),
        (36, 44),
        (44, 44),
        (40, 40),
    }
    assert int((owner == 1).sum()) >= 1
    none, worth = assign(scores, boxes, centres, {"boxes": torch.empty(0, 4), "labels": torch.empty(0).long()})
    assert (int(none.max()), float(worth.sum())) == (-1, 0)


def test_the_loss_of_a_network_that_says_what_is_there():
    given = maps(level=-30.0)
    box = torch.tensor([[16.0, 16, 24, 24]])  # exactly one cell of the finest level, the third of the third row
    target = [{"boxes": box, "labels": torch.tensor([1])}]
    given[0][0][0, 1, 2, 2] = 30.0
    losses = yolo_loss(given, target)
    assert {name: float(value) for name, value in losses.items()} == pytest.approx({"classes": 0, "boxes": 0}, abs=1e-5)


def test_the_loss_in_an_image_of_nothing_is_the_cross_entropy_with_zeros():
    nothing = [{"boxes": torch.empty(0, 4), "labels": torch.empty(0).long()}]
    losses = yolo_loss(maps(level=0.0), nothing)
    assert float(losses["classes"]) == pytest.approx(84 * 2 * math.log(2), rel=1e-6)
    assert float(losses["boxes"]) == 0


def test_the_loss_of_a_box_that_is_half_as_high():
    given = maps(level=-30.0)
    given[0][0][0, 0, 2, 2] = 30.0
    target = [{"boxes": torch.tensor([[16.0, 16, 24, 32]]), "labels": torch.tensor([0])}]  # two cells, IoU 1/2
    losses = yolo_loss(given, target)
    # The point in the upper cell is asked for its IoU, 1/2, and says 1; GIoU is 1/2 as well. The sum of the scores
    # that are asked for is less than 1, which is what it is taken for.
    assert float(losses["boxes"]) == pytest.approx(3.0 * 0.5 * 0.5, rel=1e-3)
    assert float(losses["classes"]) == pytest.approx(30 * 0.5, rel=1e-3)
