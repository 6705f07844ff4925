"""torchvision beside a torch that its compiled library does not fit."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.torchvision_import import import_torchvision, nms

installed = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")


def intersection_over_union(one, other):
    low, high = [max(one[i], other[i]) for i in (0, 1)], [min(one[i], other[i]) for i in (2, 3)]
    shared = max(high[0] - low[0], 0) * max(high[1] - low[1], 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def oracle(boxes, scores, threshold):
    """Box by box, best first: one stays unless a better one that stayed overlaps it by more than the threshold."""
    kept = []
    for index in sorted(range(len(boxes)), key=lambda index: -scores[index]):
        if all(intersection_over_union(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


BOX = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 8)] * 2).map(
    lambda box: [float(box[0]), float(box[1]), float(box[0] + box[2]), float(box[1] + box[3])]
)


@settings(deadline=None, max_examples=150)
@given(st.lists(BOX, min_size=1, max_size=20), st.sampled_from([0.0, 0.3, 0.55, 0.8, 1.0]), st.randoms())
def test_nms_keeps_what_a_search_by_hand_keeps_best_first(boxes, threshold, random):
    scores = random.sample(range(100), len(boxes))
    kept = nms(torch.tensor(boxes), torch.tensor(scores, dtype=torch.float32), threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == oracle(boxes, scores, threshold)


def test_nms_of_equal_scores_takes_the_first_and_of_no_boxes_none():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]] * 3)
    assert nms(boxes, torch.ones(3), 0.5).tolist() == [0]
    assert nms(boxes, torch.ones(3), 1.0).tolist() == [0, 1, 2]
    assert nms(torch.zeros(2, 4), torch.tensor([0.1, 0.9]), 0.5).tolist() == [1, 0]  # without area: nothing in common
    empty = nms(torch.empty(0, 4), torch.empty(0), 0.5)
    assert (empty.shape, empty.dtype) == ((0,), torch.int64)


@installed
def test_the_import_is_torchvision_itself_and_can_be_repeated():
    first = import_torchvision()
    assert first is import_torchvision() is sys.modules["torchvision"]
    assert first.__name__ == "torchvision"


@installed
def test_models_transforms_and_nms_of_torchvision_work():
    torchvision = import_torchvision()
    model = torchvision.models.resnet18(weights=None).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_689_512
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 1000)
    resize = torchvision.transforms.Resize(8)
    assert resize(torch.rand(3, 16, 24)).shape == (3, 8, 12)
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.1], [5.0, 5.0, 6.0, 6.0]])
    scores = torch.tensor([0.1, 0.9, 0.5])
    assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1, 2]
    assert torchvision.ops.batched_nms(boxes, scores, torch.tensor([0, 1, 1]), 0.5).tolist() == [1, 2, 0]


@installed
def test_the_import_works_in_a_fresh_process_and_edgeq_never_asks_for_it():
    code = (
        "import sys, torch, edgeq, edgeq.onnx.export\n"
        "model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())\n"
        "edgeq.PTCFxModule(model).calibrate([torch.rand(1, 3, 8, 8)]).convert()\n"
        "assert 'torchvision' not in sys.modules\n"
        "from recipes.torchvision_import import import_torchvision\n"
        "print(import_torchvision().ops.nms(torch.rand(1, 4), torch.rand(1), 0.5).tolist())\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[0]\n"


def test_without_torchvision_the_error_is_pythons_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as if it were not installed
    with pytest.raises(ImportError, match="torchvision"):
        import_torchvision()
