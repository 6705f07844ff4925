"""Average precision as COCO defines it: 101 points of recall, at IoU thresholds of 0.5 to 0.95.

For each class, the detections of all images are taken in the order of their scores. One that overlaps an object
of its class, which no better detection of its image has taken, by at least the threshold is right, any other is wrong.
The precision at a recall is the best that is reached at that recall or a greater one; its mean over
the recalls 0, 0.01, ..., 1 is the average precision of the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))
RECALLS = torch.arange(101, dtype=torch.float64) / 100
MOST = 100  # detections of a class in an image that count, the best ones

Detections = dict[str, Tensor]  # boxes (n, 4), scores (n,) and labels (n,) of an image


@dataclass(frozen=True)
class AveragePrecision:
    """In percent, means over the classes that occur: at IoU 0.5, and over all thresholds; and the latter by class,
    None for classes without an object.
    """

    at_50: float
    at_50_95: float
    by_class: list[float | None]


def average_precision(
    detections: Sequence[Detections], targets: Sequence[dict[str, Tensor]], classes: int
) -> AveragePrecision:
    """Of the detections in images whose objects are `targets` (boxes and labels). Raises ValueError when there is
    not one target for each image's detections, or no object at all.
    """
    if len(detections) != len(targets):
        raise ValueError(f"There are detections for {len(detections)} images and targets for {len(targets)}.")
    if not any(len(target["labels"]) for target in targets):
        raise ValueError("The targets hold no object, so precision has no meaning.")
    table = [of_class(detections, targets, label) for label in range(classes)]
    present = torch.stack([row for row in table if row is not None])
    by_class = [None if row is None else 100 * float(row.mean()) for row in table]
    return AveragePrecision(100 * float(present[:, 0].mean()), 100 * float(present.mean()), by_class)


def of_class(detections: Sequence[Detections], targets: Sequence[dict[str, Tensor]], label: int) -> Tensor | None:
    """The average precision of one class at each threshold, in 0..1; None when no image holds it."""
    objects = 0
    scores, right = [torch.empty(0)], [torch.empty(len(THRESHOLDS), 0, dtype=torch.bool)]
    for found, target in zip(detections, targets, strict=True):
        best = found["scores"].argsort(descending=True, stable=True)
        best = best[found["labels"][best] == label][:MOST]
        truth = target["boxes"][target["labels"] == label]
        overlap = iou(found["boxes"][best].cpu(), truth.cpu())
        objects += len(truth)
        scores.append(found["scores"][best].cpu())
        right.append(matched(overlap))
    if objects == 0:
        return None
    order = torch.cat(scores).argsort(descending=True, stable=True)
    return torch.stack([area_under_curve(hits, objects) for hits in torch.cat(right, 1)[:, order]])


def matched(overlap: Tensor) -> Tensor:
    """Which detections of an image are right at each threshold, bool (thresholds, n): `overlap` (n, m) is their IoU
    with the objects, best detection first. Each takes the object that it overlaps most of those that are left.
    """
    found, objects = overlap.shape
    thresholds = torch.tensor(THRESHOLDS, dtype=overlap.dtype)
    right = torch.zeros(len(thresholds), found, dtype=torch.bool)
    free = torch.ones(len(thresholds), objects, dtype=torch.bool)
    near = overlap.amax(1) >= THRESHOLDS[0] if objects else torch.zeros(found, dtype=torch.bool)
    for place in near.nonzero().flatten().tolist():
        best, taken = torch.where(free, overlap[place], -1.0).max(1)
        right[:, place] = best >= thresholds
        free[right[:, place], taken[right[:, place]]] = False
    return right


def area_under_curve(right: Tensor, objects: int) -> Tensor:
    """The average precision of detections in the order of their scores, of which some are `right`."""
    hits = right.double().cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    best = precision.flip(0).cummax(0).values.flip(0)  # at this recall or a greater one
    reached = torch.searchsorted(hits / objects, RECALLS)  # the first place with at least this recall
    return torch.cat([best, best.new_zeros(1)])[reached].mean()


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each pair of boxes (n, 4) and (m, 4): (n, m); 0 for two that are both empty."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas = [(some[:, 2:] - some[:, :2]).prod(1) for some in (boxes, others)]
    union = areas[0][:, None] + areas[1][None] - shared
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)
