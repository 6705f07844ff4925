"""Networks by name: torchvision's, or the user's own class in a file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from edgeq.errors import suggestion
from recipes.torchvision_import import import_torchvision


def classifier(name: str, classes: int) -> nn.Module:
    """The network `name` of torchvision.models, or the class that "file.py:ClassName" means, for so many classes.
    Raises ValueError for a name that is neither.
    """
    if ".py:" in name:
        return load_class(name)(num_classes=classes)
    return of_torchvision(name, import_torchvision().models, num_classes=classes)


def of_torchvision(name: str, family: ModuleType, **options: Any) -> nn.Module:
    """A network of torchvision.models, or of a module in it, with random weights. Raises ValueError for an unknown
    name.
    """
    models = import_torchvision().models
    known = models.list_models(family)
    if name not in known:
        raise ValueError(f"torchvision has no network {name!r}. {suggestion(name, known)}")
    return models.get_model(name, weights=None, **options)


def load_class(path: str) -> type[nn.Module]:
    """The class that "file.py:ClassName" means. Raises ValueError when there is none."""
    file, _, name = path.partition(":")
    spec = importlib.util.spec_from_file_location(f"own_{Path(file).stem}", file)
    if not name or spec is None or spec.loader is None or not Path(file).is_file():
        raise ValueError(f"The network {path!r} must be file.py:ClassName, with a file that exists.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise ValueError(f"{file!r} defines no {name!r}.")
    return getattr(module, name)
