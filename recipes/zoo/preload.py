"""Imports once what networks are made of, in the process that those of a sweep are forked from."""

from __future__ import annotations

import importlib
import importlib.util

from recipes.torchvision_import import import_torchvision

import_torchvision()
for _library in ("timm", "transformers"):
    if importlib.util.find_spec(_library) is not None:
        importlib.import_module(_library)
