"""torchvision's networks with random weights, on inputs as small as they take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recipes.torchvision_import import import_torchvision
from recipes.zoo.stages import Subject

CLASSIFIERS = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf"),
    *("regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0"),
    *("squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_16", "wide_resnet50_2"),
)
VIDEO = ("mc3_18", "mvit_v1_b", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_t")
SEGMENTATION = (*("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large"),)
DETECTION = (
    *("ssd300_vgg16", "ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"),
    *("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn"),
    *("keypointrcnn_resnet50_fpn",),
)
FAMILIES = {
    "torchvision classification": CLASSIFIERS,
    "torchvision video": VIDEO,
    "torchvision segmentation": SEGMENTATION,
    "torchvision detection": DETECTION,
}
SIZES = {"alexnet": 96, "inception_v3": 96, "googlenet": 64, "maxvit_t": 224, "vit_b_16": 64, "densenet121": 64}
PARTS = {
    "ssd": ("backbone", "head"),
    "retinanet": ("backbone", "head"),
    "fcos": ("backbone", "head"),
    "fasterrcnn": ("backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"),
    "maskrcnn": (
        *("backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor", "roi_heads.mask_head"),
        "roi_heads.mask_predictor",
    ),
    "keypointrcnn": (
        *("backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor", "roi_heads.keypoint_head"),
        "roi_heads.keypoint_predictor",
    ),
}
FRAMES = {"s3d": (16, 224), "mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224)}
OPTIONS: dict[str, dict[str, Any]] = {"vit_b_16": {"image_size": 64}}


def subject(name: str, family: str) -> Subject:
    """One of the networks above."""
    if family.endswith("video"):
        frames, size = FRAMES.get(name, (8, 64))
        return Subject(name, family, lambda: _build(name), lambda: (torch.randn(2, 3, frames, size, size),))
    if family.endswith("detection"):
        parts = next(parts for start, parts in PARTS.items() if name.startswith(start))
        return Subject(name, family, lambda: _build(name), lambda: (_pictures(),), lambda: (_boxes(),), parts=parts)
    size = SIZES.get(name, 64)
    return Subject(name, family, lambda: _build(name), lambda: (torch.randn(2, 3, size, size),))


def _pictures() -> list[Tensor]:
    return [torch.rand(3, 160, 200), torch.rand(3, 200, 160)]


def _boxes() -> list[dict[str, Tensor]]:
    """What the two pictures show: a box each, with a mask and key points for who wants them."""
    target = {
        "boxes": torch.tensor([[20.0, 30.0, 120.0, 130.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 160, 200, dtype=torch.uint8),
        "keypoints": torch.tensor([[[60.0, 80.0, 1.0]] * 17]),
    }
    return [target, {**target, "masks": torch.ones(1, 200, 160, dtype=torch.uint8)}]


def _build(name: str) -> nn.Module:
    models = import_torchvision().models
    options = OPTIONS.get(name, {})
    if name in DETECTION or name in SEGMENTATION:
        options = {"weights_backbone": None, **options}
    if name in DETECTION and not name.startswith("ssd"):  # whose size is fixed
        options = {"min_size": 128, "max_size": 160, **options}
    if "rcnn" in name:  # with random weights nothing scores more, and no box would reach the heads behind
        options = {"box_score_thresh": 0.0, "box_detections_per_img": 4, **options}
    return models.get_model(name, weights=None, **options)
