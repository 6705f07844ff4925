"""Average precision, against cases that are worked out by hand."""

import pytest
import torch

from recipes.detection.average_precision import area_under_curve, average_precision, iou, matched

BOX, FAR = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]


def found(*entries):
    """Detections of an image, of (box, score, label)."""
    boxes, scores, labels = zip(*entries, strict=True) if entries else ((), (), ())
    boxes = torch.tensor(boxes).reshape(-1, 4)
    return {"boxes": boxes, "scores": torch.tensor(scores), "labels": torch.tensor(labels, dtype=torch.int64)}


def truth(*entries):
    """Objects of an image, of (box, label)."""
    boxes, labels = zip(*entries, strict=True) if entries else ((), ())
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def shifted(share):
    """A box whose IoU with BOX is `share`."""
    return [0.0, 0.0, 10.0, 10.0 * share]


def test_iou_of_boxes():
    boxes = torch.tensor([BOX, [5.0, 0, 15, 10], [2.0, 2, 2, 2]])
    overlap = iou(boxes, torch.tensor([BOX, FAR, [2.0, 2, 2, 2]]))
    assert overlap.tolist() == [[1, 0, 0], [pytest.approx(1 / 3), 0, 0], [0, 0, 0]]


def test_what_is_all_found_and_nothing_else_is_100():
    result = average_precision([found((BOX, 0.3, 0), (FAR, 0.2, 1))], [truth((BOX, 0), (FAR, 1))], 2)
    assert (result.at_50, result.at_50_95, result.by_class) == (100, 100, [100, 100])


def test_the_right_place_with_the_wrong_label_is_wrong():
    assert average_precision([found((BOX, 0.9, 1))], [truth((BOX, 0))], 2).at_50 == 0


def test_a_box_counts_at_the_thresholds_that_it_overlaps_by():
    result = average_precision([found((shifted(0.77), 0.9, 0))], [truth((BOX, 0))], 1)
    assert (result.at_50, result.at_50_95) == (100, pytest.approx(60))  # 0.5, 0.55, 0.6, 0.65, 0.7, 0.75


def test_of_three_detections_and_two_objects_over_two_images():
    """Right, wrong, right: precision 1 up to a recall of 0.5, that is at 51 of 101 points, then 2/3 at the other 50."""
    detections = [found((BOX, 0.9, 0)), found((FAR, 0.8, 0), (BOX, 0.7, 0))]
    result = average_precision(detections, [truth((BOX, 0)), truth((BOX, 0))], 1)
    assert result.at_50 == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_an_object_is_found_once_by_the_best_detection():
    """Right, then a second box on the same object, wrong: precision 1 at recall 1 all the same."""
    detections = found((BOX, 0.9, 0), (shifted(0.9), 0.8, 0))
    assert average_precision([detections], [truth((BOX, 0))], 1).at_50 == 100
    twice = found((BOX, 0.8, 0), (shifted(0.6), 0.9, 0))  # the worse box comes first and takes the object
    assert average_precision([twice], [truth((BOX, 0))], 1).at_50_95 == pytest.approx(100 * (3 + 7 / 2) / 10)


def test_a_detection_takes_the_object_that_it_overlaps_most_of_those_that_are_left():
    overlap = torch.tensor([[0.6, 0.9], [0.0, 0.95], [0.55, 0.5]])
    right = matched(overlap)
    assert right[0].tolist() == [True, False, True]  # at 0.5; the second found its only object taken
    assert right[8].tolist() == [True, False, False]  # at 0.9
    assert right[9].tolist() == [False, True, False]  # at 0.95


def test_precision_is_the_best_at_a_recall_or_a_greater_one():
    wrong_first = area_under_curve(torch.tensor([False, True, True, True]), 3)
    assert float(wrong_first) == pytest.approx(3 / 4)
    assert float(area_under_curve(torch.tensor([True, False]), 4)) == pytest.approx(26 / 101)  # recalls 0 to 0.25
    assert float(area_under_curve(torch.tensor([], dtype=torch.bool), 4)) == 0


def test_classes_without_objects_do_not_count_and_a_missed_class_counts_as_nothing():
    result = average_precision([found((BOX, 0.9, 0), (BOX, 0.9, 1))], [truth((BOX, 0), (FAR, 2))], 3)
    assert (result.at_50, result.by_class) == (50, [100, None, 0])


def test_only_the_best_hundred_of_an_image_count():
    crowd = [(FAR, 0.9, 0)] * 100 + [(BOX, 0.1, 0)]
    assert average_precision([found(*crowd)], [truth((BOX, 0))], 1).at_50 == 0
    assert average_precision([found(*crowd[1:])], [truth((BOX, 0))], 1).at_50 == pytest.approx(1)


def test_an_image_without_detections_or_objects():
    result = average_precision([found(), found((BOX, 0.9, 0))], [truth((BOX, 0)), truth()], 1)
    assert result.at_50 == 0
    with pytest.raises(ValueError, match="hold no object"):
        average_precision([found()], [truth()], 1)
    with pytest.raises(ValueError, match="for 1 images and targets for 2"):
        average_precision([found()], [truth(), truth((BOX, 0))], 1)
