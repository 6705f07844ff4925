"""How a tensor is fake-quantized. Importing the package registers all quantizers that presets name."""

from edgeq.quantizers import fixed, lsq
from edgeq.quantizers.registry import QUANTIZERS
from edgeq.quantizers.scheme import Scheme

__all__ = ["QUANTIZERS", "Scheme", "fixed", "lsq"]
