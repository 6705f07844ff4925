"""What the program needs to know of a kind of detector: how it is built, trained, quantized, exported and read."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeq.exportable import ExportingModule
from edgeq.onnx.export import ExportResult
from recipes.detection.average_precision import Detections
from recipes.detection.coco import Target
from recipes.detection.errors import OptionError
from recipes.detection.files import File, yolo_of_file
from recipes.detection.ssd import PARTS, small_ssd, ssd_detections, ssd_loss, ssdlite
from recipes.detection.yolo import Yolo
from recipes.detection.yolo_boxes import detections
from recipes.detection.yolo_loss import yolo_loss

Network = Callable[..., Any]  # float, quantized, converted, or made of files


class Detector(ABC):
    """A kind of detector."""

    @abstractmethod
    def build(self, classes: int, size: int, width: float | None = None, depth: float | None = None) -> nn.Module:
        """The float network, for images of `size` pixels. Raises OptionError for what this kind cannot be."""

    @abstractmethod
    def loss(self, model: nn.Module, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """What training makes small, in its parts."""

    @abstractmethod
    def detect(self, network: Network, images: Tensor) -> list[Detections]:
        """Boxes, scores and labels of each image, best first."""

    @abstractmethod
    def quantization(self, size: int) -> dict[str, Any]:
        """What edgeq's wrappers are to be told of this kind."""

    @abstractmethod
    def export(self, quantized: ExportingModule, images: Tensor, folder: Path) -> list[ExportResult]:
        """Writes what a device runs, compared on `images`."""

    @abstractmethod
    def deployed(self, model: nn.Module, results: list[ExportResult]) -> Network:
        """A network made of the files; the Python around them is that of `model`."""


class YoloDetector(Detector):
    """Quantized whole: the network returns raw maps, and boxes are made of them outside."""

    def build(self, classes: int, size: int, width: float | None = None, depth: float | None = None) -> nn.Module:
        if size % 32:
            raise OptionError(f"The size of the images is {size}; the YOLO network needs a multiple of 32.")
        return Yolo(classes, width or 0.25, depth or 0.34)

    def loss(self, model: nn.Module, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        return yolo_loss(model(images), targets)

    def detect(self, network: Network, images: Tensor) -> list[Detections]:
        return detections(network(images))

    def quantization(self, size: int) -> dict[str, Any]:
        return {"example_inputs": torch.rand(1, 3, size, size)}  # only to see at once that everything fits

    def export(self, quantized: ExportingModule, images: Tensor, folder: Path) -> list[ExportResult]:
        return [quantized.export(images, folder / "model.onnx", dynamic_batch=True)]

    def deployed(self, model: nn.Module, results: list[ExportResult]) -> Network:
        return yolo_of_file(results[0].path)


class SsdDetector(Detector):
    """Backbone and head are quantized, each by itself; matching, loss and boxes stay Python in the model's forward."""

    def __init__(self, network: Callable[[int, float, int], nn.Module]) -> None:
        self.network = network

    def build(self, classes: int, size: int, width: float | None = None, depth: float | None = None) -> nn.Module:
        if depth is not None:
            raise OptionError(f"The depth is {depth}; only that of the YOLO network can be chosen.")
        return self.network(classes, width or 1.0, size)

    def loss(self, model: nn.Module, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        return ssd_loss(model, images, targets)

    def detect(self, network: Network, images: Tensor) -> list[Detections]:
        return ssd_detections(network, images)

    def quantization(self, size: int) -> dict[str, Any]:
        return {"submodules": PARTS, "example_inputs": [torch.rand(3, size, size)]}  # how many maps the head takes

    def export(self, quantized: ExportingModule, images: Tensor, folder: Path) -> list[ExportResult]:
        return list(quantized.export_parts(list(images), folder, dynamic_batch=True).values())

    def deployed(self, model: nn.Module, results: list[ExportResult]) -> Network:
        network = copy.deepcopy(model)
        for path, result in zip(PARTS, results, strict=True):
            network.set_submodule(path, File(result.path))
        return network


DETECTORS: dict[str, Detector] = {
    "yolo": YoloDetector(),
    "ssd": SsdDetector(small_ssd),
    "ssdlite": SsdDetector(ssdlite),
}
