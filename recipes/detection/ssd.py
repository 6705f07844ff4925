"""torchvision's SSD, with SSDLite's MobileNetV3 or on a small backbone: matching, loss and non-maximum suppression are
torchvision's own, inside of its forward. They stay in Python, around a quantized backbone and a quantized head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from recipes.detection.average_precision import Detections
from recipes.detection.coco import Target
from recipes.torchvision_import import import_torchvision

PARTS = ("backbone", "head")  # what is quantized
HALF = (0.5, 0.5, 0.5)  # mean and deviation: images go to -1..1
# torchvision's SSDLite has a momentum of 0.03, for hundreds of thousands of steps. Its weights begin so small that what
# enters a norm has a variance of some 0.002, while the running one begins at 1: with 0.03 that takes 300 steps to be
# forgotten, and until then a network that has learned finds nothing in eval mode. With 0.1 it takes 90.
MOMENTUM = 0.1


def ssdlite(classes: int, width: float = 1.0, size: int = 320) -> nn.Module:
    """SSDLite with six maps, from 1/16 of the image on, for `classes` without the background and images of `size`
    pixels. `width` scales the channels of MobileNetV3. At width 1 the weights that torchvision trained on COCO fit, but
    for the classes. The smaller the images, the fewer points these maps have, and the longer it learns.
    """
    import_torchvision()
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=MOMENTUM)
    model = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=classes + 1, width_mult=width, norm_layer=norm
    )
    model.transform = GeneralizedRCNNTransform(size, size, HALF, HALF, size_divisible=1, fixed_size=(size, size))
    return model


def small_ssd(classes: int, width: float = 1.0, size: int = 320) -> nn.Module:
    """SSD on a small backbone with maps at 1/8, 1/16 and 1/32 of the image: learns in minutes what is easy."""
    import_torchvision()
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD, SSDHead

    backbone = SmallBackbone(width)
    boxes = DefaultBoxGenerator([[2], [2], [2]], scales=[0.15, 0.3, 0.5, 0.8])
    head = SSDHead(backbone.out_channels, boxes.num_anchors_per_location(), classes + 1)
    return SSD(backbone, boxes, (size, size), classes + 1, HALF, HALF, head=head)


class SmallBackbone(nn.Module):
    """Images (batch, 3, height, width) to maps at strides 8, 16 and 32."""

    def __init__(self, width: float) -> None:
        super().__init__()
        from torchvision.ops import Conv2dNormActivation as Convolution

        c1, c2, c3, c4, c5 = (max(8, 8 * round(width * channels / 8)) for channels in (32, 64, 128, 256, 256))
        self.out_channels = [c3, c4, c5]
        self.to_8 = nn.Sequential(
            Convolution(3, c1, 3, 2), Convolution(c1, c2, 3, 2), Convolution(c2, c3, 3, 2), Convolution(c3, c3, 3)
        )
        self.to_16 = nn.Sequential(Convolution(c3, c4, 3, 2), Convolution(c4, c4, 3))
        self.to_32 = nn.Sequential(Convolution(c4, c5, 3, 2), Convolution(c5, c5, 3))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The maps, the finest one first."""
        fine = self.to_8(images)
        middle = self.to_16(fine)
        return OrderedDict([("0", fine), ("1", middle), ("2", self.to_32(middle))])


def ssd_loss(model: nn.Module, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
    """The losses of boxes and classes, as torchvision has them. It counts the background as class 0."""
    shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
    return model(list(images), shifted)


@torch.no_grad()
def ssd_detections(model: Callable, images: Tensor) -> list[Detections]:
    """The boxes, scores and labels of each image, best first."""
    return [{**found, "labels": found["labels"] - 1} for found in model(list(images))]
