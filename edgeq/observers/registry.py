"""The observers that presets name."""

from __future__ import annotations

from edgeq.observers.base import Observer
from edgeq.registry import Registry

OBSERVERS: Registry[type[Observer]] = Registry("observer")
