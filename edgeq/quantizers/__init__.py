"""How a tensor is fake-quantized. Importing the package registers all quantizers that presets name."""

from edgeq.quantizers import apot, dorefa, dsq, fixed, lsq, lsqplus, nnie, pact, qil, tqt
from edgeq.quantizers.registry import QUANTIZERS
from edgeq.quantizers.scheme import Scheme

__all__ = [
    "QUANTIZERS",
    "Scheme",
    "apot",
    "dorefa",
    "dsq",
    "fixed",
    "lsq",
    "lsqplus",
    "nnie",
    "pact",
    "qil",
    "tqt",
]
