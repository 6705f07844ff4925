"""`import torchvision` where its compiled library does not fit the installed torch.

The wheels of torchvision on the package index are built for CUDA. Beside a CPU build of torch their library
does not load, and the import then stops at two operators, nms and qnms, whose shapes torchvision declares
without asking whether they exist. Defining their schemas lets the import through; models and transforms work,
and `nms` gets an implementation in plain PyTorch.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

_library: torch.library.Library | None = None  # the definitions live as long as this does


def import_torchvision() -> ModuleType:
    """torchvision, with what its library would have defined where that does not load. Raises ImportError when
    it is not installed.
    """
    if "torchvision" not in sys.modules and not _library_loads():
        _define_operators()
    import torchvision

    if _library is not None:
        torchvision.ops.boxes._assert_has_ops = lambda: None  # it asks for the library; there is an nms without it
    return torchvision


def _library_loads() -> bool:
    """Whether torchvision's own operators can be loaded; true too where it is not installed."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    for library in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
        return True
    return False


def _define_operators() -> None:
    global _library
    if _library is None:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library.impl("nms", nms, "CompositeExplicitAutograd")


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression: indices, int64, of the boxes (n, 4) that stay, best score first."""
    order = torch.argsort(scores, descending=True, stable=True)
    left, upper, right, lower = boxes[order].detach().float().cpu().numpy().T  # small steps are faster than on tensors
    areas = (right - left) * (lower - upper)
    free = np.ones(len(areas), dtype=bool)
    kept = []
    for best in range(len(areas)):
        if not free[best]:
            continue
        kept.append(best)
        rest = slice(best + 1, None)
        width = np.minimum(right[best], right[rest]) - np.maximum(left[best], left[rest])
        height = np.minimum(lower[best], lower[rest]) - np.maximum(upper[best], upper[rest])
        overlap = width.clip(min=0) * height.clip(min=0)
        with np.errstate(invalid="ignore"):  # of two empty boxes, both stay
            free[rest] &= ~(overlap / (areas[best] + areas[rest] - overlap) > iou_threshold)
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]
