"""What the YOLO network is trained to say, and how far it is from that.

Which points are responsible for an object is not laid down by its size or its centre. Points inside of the object
compete: the ones whose box and class already agree best with it learn it, and the better they agree the higher is the
score that they are asked for. So a level specializes by itself, and the score says how well the box fits, which is what
non-maximum suppression needs (task-aligned assignment: Feng et al., TOOD, https://arxiv.org/abs/2108.07755).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.detection.average_precision import iou
from recipes.detection.coco import Target
from recipes.detection.yolo import STRIDES, Maps
from recipes.detection.yolo_boxes import decode, flatten

RESPONSIBLE = 10  # points of an object
SCORE_POWER, OVERLAP_POWER = 0.5, 6.0  # alignment is score^0.5 * IoU^6
BOX_WEIGHT = 3.0  # of the loss of boxes, beside 1 for the classes


def yolo_loss(maps: Maps, targets: list[Target]) -> dict[str, Tensor]:
    """The loss of the classes (binary cross entropy at all points) and of the boxes (1 - GIoU at the responsible
    ones), both divided by the sum of the scores that are asked for, over the batch.
    """
    classes, raw, centres, strides = flatten(maps)
    boxes = decode(raw.float(), centres, strides)
    wanted = torch.zeros_like(classes)
    overlap = []
    for index, target in enumerate(targets):
        scores = classes[index].detach().sigmoid()
        owner, worth = assign(scores, boxes[index].detach(), centres, target)
        points = torch.nonzero(owner >= 0).flatten()
        owner, worth = owner[points], worth[points]
        wanted[index, points, target["labels"][owner]] = worth
        overlap.append(((1 - giou(boxes[index, points], target["boxes"][owner])) * worth).sum())
    total = wanted.sum().clamp(min=1)
    cross_entropy = F.binary_cross_entropy_with_logits(classes, wanted, reduction="sum")
    return {"classes": cross_entropy / total, "boxes": BOX_WEIGHT * torch.stack(overlap).sum() / total}


def assign(scores: Tensor, boxes: Tensor, centres: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Which object each point of an image is responsible for, int64 (n,), -1 for none, and the score in 0..1 that it
    is asked for, (n,).

    `scores` (n, classes) in 0..1 and `boxes` (n, 4) are what the network says now. Of each object's points the
    `RESPONSIBLE` best aligned are chosen; one that several objects choose goes to the one that its box overlaps most.
    The best point of an object is asked for its IoU, the others for less in proportion to their alignment.
    """
    truth, labels = target["boxes"], target["labels"]
    if not len(labels):
        return torch.full((len(boxes),), -1, device=boxes.device), boxes.new_zeros(len(boxes))
    overlap = iou(truth, boxes)  # (m, n), like all that follows
    alignment = scores[:, labels].T ** SCORE_POWER * overlap**OVERLAP_POWER
    alignment = alignment.clamp(min=1e-30) * is_inside(centres, truth)
    least = alignment.topk(min(RESPONSIBLE, len(boxes))).values[:, -1:]
    chosen = (alignment >= least) & (alignment > 0)
    overlap = torch.where(chosen, overlap, -1.0)
    best, owner = overlap.max(0)
    chosen &= torch.arange(len(labels), device=boxes.device)[:, None] == owner
    alignment = alignment * chosen
    worth = alignment / alignment.amax(1, keepdim=True).clamp(min=1e-30) * (overlap * chosen).amax(1, keepdim=True)
    return torch.where(best >= 0, owner, -1), worth.sum(0).clamp(0, 1)


def is_inside(centres: Tensor, truth: Tensor) -> Tensor:
    """Whether a point (n, 2) lies inside of a box (m, 4): bool (m, n). Boxes that are smaller than the finest stride
    are taken for that large, so that every one has a point.
    """
    middle = (truth[:, :2] + truth[:, 2:]) / 2
    half = ((truth[:, 2:] - truth[:, :2]) / 2).clamp(min=STRIDES[0] / 2)
    return ((centres[None] - middle[:, None]).abs() <= half[:, None]).all(2)


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalized IoU of boxes (n, 4) with as many others: (n,) in -1..1. IoU less the empty share of the smallest
    box around both, so that boxes that do not touch have a gradient (Rezatofighi et al.,
    https://arxiv.org/abs/1902.09630).
    """
    low, high = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    union = sum((some[:, 2:] - some[:, :2]).prod(1) for some in (boxes, others)) - shared
    around = (torch.maximum(boxes[:, 2:], others[:, 2:]) - torch.minimum(boxes[:, :2], others[:, :2])).prod(1)
    least = torch.finfo(boxes.dtype).eps
    return shared / (union + least) - (around - union) / (around + least)
