"""A converted network as an ONNX file: written whole or not at all, checked, and compared before it is kept."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor
from torch.utils import _pytree as pytree

from edgeq.errors import ExportError, suggestion
from edgeq.graph.arguments import as_call, describe
from edgeq.graph.convert import ConvertedModule
from edgeq.graph.face import Faced
from edgeq.graph.program import Program
from edgeq.onnx.capture import capture
from edgeq.onnx.finish import finish
from edgeq.onnx.integer import to_integer
from edgeq.onnx.kernels import Kernels, kernels_of
from edgeq.onnx.verify import MERGED, Parity, compare
from edgeq.version import __version__

FORMATS = ("qdq", "integer")

logger = logging.getLogger(__name__)


@dataclass
class ExportResult:
    """What was written, and how it compares with the network that was validated: tensor by tensor (`parity`), and
    in what arithmetic ONNX Runtime runs it (`kernels`). Without verification both are empty.
    """

    path: Path
    format: str
    opset: int
    ir_version: int
    bytes: int
    nodes: dict[str, int]
    parity: list[Parity] = field(default_factory=list)
    kernels: Kernels | None = None

    @property
    def passed(self) -> bool:
        """Whether every comparison kept to its tolerances."""
        return all(parity.passed for parity in self.parity)

    def __str__(self) -> str:
        size, nodes = self.bytes / 1024, sum(self.nodes.values())
        head = f"{self.path}: {self.format}, opset {self.opset}, {size:.0f} KiB, {nodes} nodes"
        proof = [*self.parity, self.kernels] if self.kernels else self.parity
        return "\n".join([head, *map(str, proof)])


def export(
    network: ConvertedModule,
    inputs: tuple[Any, ...],
    path: str | Path,
    opset_version: int | None = None,
    format: str = "qdq",  # noqa: A002 - the word that users of exporters know
    dynamic_batch: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    verify: bool = True,
) -> ExportResult:
    """Writes `network` to `path` and compares the file with it on `inputs`.

    `opset_version` defaults to the backend's. Raises ExportError for a path that cannot be written, a format or
    an opset that there is not, or a file that lost a quantizer; then nothing is left at `path`.
    """
    if format not in FORMATS:
        raise ExportError(f"format is {format!r}. {suggestion(format, FORMATS)}")
    target = writable(Path(path))
    onnx_spec = network.backend.onnx
    opset = onnx_spec.opset if opset_version is None else opset_version
    if onnx_spec.opsets and opset not in onnx_spec.opsets:
        choices = ", ".join(str(choice) for choice in onnx_spec.opsets)
        raise ExportError(f"The backend {network.backend.name!r} reads the opsets {choices}; opset_version is {opset}.")
    captured = capture(network, inputs, opset, dynamic_batch, input_names, output_names)
    model = finish(captured)
    if format == "integer":
        model = to_integer(model, network.backend.rounding)
    common.ShapeInferencePass()(model)
    _describe(model, network, format)
    if captured.merged:
        model.metadata_props[MERGED] = json.dumps(captured.merged)
    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"The file is no valid ONNX: {error}\nThe inputs were {describe(inputs)}; floating ones must be float32."
        ) from error
    parity = compare(network, proto, inputs, batch=None) if verify else []
    kernels = kernels_of(proto) if verify else None
    data = proto.SerializeToString()
    write_atomically(data, target)
    nodes = dict(Counter(node.op_type for node in proto.graph.node))
    result = ExportResult(target, format, opset, proto.ir_version, len(data), nodes, parity, kernels)
    if not result.passed:
        logger.warning("%s does not compute what was validated:\n%s", target, result)
    return result


def _describe(model: ir.Model, network: ConvertedModule, format: str) -> None:  # noqa: A002
    """Says in the file what made it, so that a file found on a device explains itself."""
    needed = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", model.opset_imports[""])])
    model.ir_version = max(network.backend.onnx.ir_version, needed)
    model.producer_name, model.producer_version = "edgeq", __version__
    model.graph.name = "edgeq"
    model.doc_string = None
    model.metadata_props.update(
        {
            "edgeq.version": __version__,
            "edgeq.preset": network.qconfig.name,
            "edgeq.backend": network.backend.name,
            "edgeq.format": format,
        }
    )


def writable(path: Path) -> Path:
    """`path`, if a file can be written there. Raises ExportError before any work is done when it cannot."""
    folder = path.parent
    if path.is_dir():
        raise ExportError(f"{str(path)!r} is a folder; name a file in it.")
    if not folder.is_dir():
        raise ExportError(f"The folder {str(folder)!r} does not exist; create it first.")
    if not os.access(folder, os.W_OK):
        raise ExportError(f"The folder {str(folder)!r} is not writable.")
    return path


def write_atomically(data: bytes, path: Path) -> None:
    """Writes a file so that at any moment either all of it is there or none: beside its place, then moved."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def as_inputs(inputs: Any, network: Program | Faced) -> tuple[Any, ...]:
    """The arguments of a network's forward: a dict may hold them by name, and a tensor, or anything else that is not a
    tuple, is its only one. Raises ExportError for inputs of which none can be compared.
    """
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(inputs)):
        raise ExportError(f"The inputs hold no tensor: {inputs!r}. Give the arguments of the model's forward.")
    names, defaults = network.argument_names, network.argument_defaults
    inputs, by_name = as_call(inputs, names)
    last = max((names.index(name) for name in by_name), default=-1)
    inputs = (*inputs, *(by_name.get(name, defaults.get(name)) for name in names[: last + 1]))
    if any(isinstance(leaf, Tensor) and not leaf.numel() for leaf in pytree.tree_leaves(inputs)):
        raise ExportError(f"The inputs are empty ({describe(inputs)}): there is nothing to compare the file on.")
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if any(leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()) for leaf in leaves):
        raise ExportError("The inputs hold NaN or infinity, with which nothing can be compared. Give real data.")
    return inputs
