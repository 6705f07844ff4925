"""Exported files as networks that the recipe can evaluate."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from recipes.detection.yolo import Maps


class File(nn.Module):
    """A file as ONNX Runtime runs it, on as many threads as PyTorch: tensors, or lists of them, to named outputs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        # CPUs without VNNI add pairs of 8-bit products in 16 bits, unless they are told not to.
        settings.add_session_config_entry("session.x64quantprecision", "1")
        self.session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        """The outputs, in the order of the file."""
        given = [tensor.numpy() for tensor in pytree.tree_leaves(inputs)]
        feeds = dict(zip([value.name for value in self.session.get_inputs()], given, strict=True))
        arrays = self.session.run(None, feeds)
        names = [value.name for value in self.session.get_outputs()]
        return OrderedDict((name, torch.from_numpy(array)) for name, array in zip(names, arrays, strict=True))


def yolo_of_file(path: Path) -> Callable[[Tensor], Maps]:
    """The file of a YOLO network in the network's place."""
    file = File(path)

    def run(images: Tensor) -> Maps:
        maps = list(file(images).values())
        return list(zip(maps[::2], maps[1::2], strict=True))

    return run
