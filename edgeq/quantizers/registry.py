"""The quantizers that presets name."""

from __future__ import annotations

from edgeq.quantizers.scheme import Scheme
from edgeq.registry import Registry

QUANTIZERS: Registry[type[Scheme]] = Registry("quantizer")
