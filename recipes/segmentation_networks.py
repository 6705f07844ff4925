"""Segmentation networks by name: torchvision's, and its two heads on a backbone of four convolutions."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from recipes.digits_network import convolution
from recipes.networks import of_torchvision
from recipes.torchvision_import import import_torchvision

SMALL = ("lraspp_small", "deeplabv3_small")


def segmenter(name: str, classes: int, aux: bool = False) -> nn.Module:
    """A network from images (batch, 3, height, width) to {"out": logits (batch, classes, height, width)}, and "aux",
    the same from an earlier layer, if `aux` is true. Weights are random. Raises ValueError for a name that is unknown
    or a network without such a layer.
    """
    if aux and name.startswith("lraspp"):
        raise ValueError(f"{name!r} has no auxiliary classifier: leave --aux-loss out.")
    if name in SMALL:
        return small(name, classes, aux)
    auxiliary = {} if name.startswith("lraspp") else {"aux_loss": aux}
    family = import_torchvision().models.segmentation
    return of_torchvision(name, family, num_classes=classes, weights_backbone=None, **auxiliary)


def small(name: str, classes: int, aux: bool) -> nn.Module:
    """One of SMALL: for tests, and for images of 64 pixels."""
    segmentation = import_torchvision().models.segmentation
    if name == "lraspp_small":
        return segmentation.LRASPP(Backbone(low=16, high=32), 16, 32, classes, inter_channels=32)
    head = segmentation.deeplabv3.DeepLabHead(32, classes, atrous_rates=(2, 4, 6))
    auxiliary = segmentation.fcn.FCNHead(16, classes) if aux else None
    return segmentation.DeepLabV3(Backbone(aux=16, out=32), head, auxiliary)


class Backbone(nn.Module):
    """Images to two maps of features under the given names, with 16 channels at a quarter of the size and 32 at an
    eighth.
    """

    def __init__(self, **names: int) -> None:
        super().__init__()
        self.early, self.late = names
        self.stem = nn.Sequential(convolution(3, 16, 3, stride=2), convolution(16, 16, 3, stride=2))
        self.rest = nn.Sequential(convolution(16, 32, 3, stride=2), convolution(32, 32, 3))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The features."""
        early = self.stem(images)
        return OrderedDict([(self.early, early), (self.late, self.rest(early))])
