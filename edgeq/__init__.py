"""edgeq: from a trained PyTorch model to an integer model for edge accelerators, with proof that they agree."""

from edgeq.backends import BackendSpec, backend_names, load_backend
from edgeq.checkpoint import LoadReport, load_weights
from edgeq.derive import derive
from edgeq.errors import CalibrationError, EdgeqError, ExportError, SpecError, TraceError
from edgeq.exportable import IntegerModule
from edgeq.fx import convert_fx, prepare_fx, prepare_qat_fx
from edgeq.graph.passes import rewrite_names
from edgeq.modules.stubs import DeQuantStub, QuantStub
from edgeq.presets import load_preset, preset_names, save_preset
from edgeq.qconfig_mapping import QConfigMapping
from edgeq.recovery import recovery_steps
from edgeq.spec import QConfig, TensorSpec
from edgeq.version import __version__
from edgeq.wrapper import PTCFxModule, QATFxModule

__all__ = [
    "BackendSpec",
    "CalibrationError",
    "DeQuantStub",
    "EdgeqError",
    "ExportError",
    "IntegerModule",
    "LoadReport",
    "PTCFxModule",
    "QATFxModule",
    "QConfig",
    "QConfigMapping",
    "QuantStub",
    "SpecError",
    "TensorSpec",
    "TraceError",
    "__version__",
    "backend_names",
    "convert_fx",
    "derive",
    "load_backend",
    "load_preset",
    "load_weights",
    "prepare_fx",
    "prepare_qat_fx",
    "preset_names",
    "recovery_steps",
    "rewrite_names",
    "save_preset",
]
