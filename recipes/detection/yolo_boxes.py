"""From the raw maps of the YOLO network to boxes, and back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.detection.average_precision import Detections
from recipes.detection.yolo import STRIDES, Maps
from recipes.torchvision_import import import_torchvision

LEAST_SCORE = 0.001  # low, because average precision looks at the whole curve; to show boxes, 0.3 or so
CANDIDATES = 1000  # of an image, the best ones, go into non-maximum suppression
OVERLAP = 0.6  # IoU above which the lower of two boxes of a class goes
KEPT = 300  # boxes of an image


def flatten(maps: Maps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All points of all levels in one row of n: raw classes (batch, n, classes), raw boxes (batch, n, 4), the points'
    centres in pixels (n, 2), and the strides of their levels (n, 1).
    """
    classes = torch.cat([level.flatten(2).transpose(1, 2) for level, _ in maps], 1)
    boxes = torch.cat([level.flatten(2).transpose(1, 2) for _, level in maps], 1)
    centres, strides = [], []
    for (level, _), stride in zip(maps, STRIDES, strict=True):
        height, width = level.shape[2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres.append((torch.stack([x, y], 2).reshape(-1, 2) + 0.5) * stride)
        strides.append(torch.full((height * width, 1), float(stride)))
    return classes, boxes, torch.cat(centres).to(classes.device), torch.cat(strides).to(classes.device)


def decode(raw: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Boxes x1 y1 x2 y2 in pixels of raw numbers, both (..., n, 4). softplus(raw) is the distance from the centre to
    the left, upper, right and lower side, in strides: never negative, and as finely resolved by the 8 bits of a
    quantized map for a small box as for a large one of the same level.
    """
    distances = F.softplus(raw) * strides
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], -1)


def encode(boxes: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """The raw numbers that `decode` makes `boxes` of; the centres must lie inside of them."""
    distances = torch.cat([centres - boxes[..., :2], boxes[..., 2:] - centres], -1) / strides
    return distances + torch.log(-torch.expm1(-distances))  # the inverse of softplus


@torch.no_grad()
def detections(maps: Maps) -> list[Detections]:
    """The boxes, scores and labels of each image, after non-maximum suppression in each class; best first."""
    suppress = import_torchvision().ops.batched_nms
    classes, raw, centres, strides = flatten(maps)
    found = []
    for scores, boxes in zip(classes.sigmoid(), decode(raw, centres, strides), strict=True):
        best, place = scores.flatten().sort(descending=True, stable=True)
        count = min(CANDIDATES, int((best > LEAST_SCORE).sum()))
        best, place = best[:count], place[:count]
        candidates, labels = boxes[place // scores.shape[1]], place % scores.shape[1]
        kept = suppress(candidates, best, labels, OVERLAP)[:KEPT]
        found.append({"boxes": candidates[kept], "scores": best[kept], "labels": labels[kept]})
    return found
