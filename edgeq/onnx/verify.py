"""Proof that a file computes what was validated: every integer of every tensor, compared with ONNX Runtime.

Two questions are kept apart for each tensor. *Inherited*: how do the integers compare when both networks run
from the input on? *Local*: how do they compare when the operation that gives the tensor is done on the
runtime's own inputs? A tensor that differs but not locally has only inherited what went wrong before it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from edgeq.arithmetic import Rounding
from edgeq.errors import ExportError
from edgeq.graph.convert import ConvertedModule
from edgeq.graph.interpreter import Interpreter
from edgeq.graph.results import tensors_in
from edgeq.modules.integer import IntegerLayer
from edgeq.onnx.capture import tensor_names
from edgeq.onnx.session import Runtime
from edgeq.onnx.tolerance import OTHERWISE, OUTPUT_ERROR, Tolerance, cause_of, tolerance_of

BATCH = 64
HALF_EVEN_ONLY = ("QuantizeLinear", "QLinearConv", "QLinearMatMul")
MERGED = "edgeq.merged"  # in a file's metadata: integer tensors, and which one each is the same value as, as JSON
MOST_NAMED = 5  # tensors beyond their tolerance in a message


@dataclass
class TensorParity:
    """How the integers of one tensor compare. Shares are of `elements`; greatest differences are in steps. A row of
    features that was computed twice counts once in the verdict.
    """

    name: str
    operation: str
    tolerance: Tolerance
    elements: int = 0
    unequal: int = 0
    greatest: int = 0
    local_unequal: int = 0
    local_greatest: int = 0
    repeated: int = 0  # of the elements whose own operation differs, those that stand in a row seen before

    def add(self, ours: np.ndarray, theirs: np.ndarray, local: np.ndarray) -> None:
        """Takes in one batch of integers."""
        inherited, own = (np.abs(values.astype(np.int64) - theirs) for values in (ours, local))
        self.elements += theirs.size
        self.unequal += int(np.count_nonzero(inherited))
        self.local_unequal += int(np.count_nonzero(own))
        if theirs.size:
            self.greatest = max(self.greatest, int(inherited.max()))
            self.local_greatest = max(self.local_greatest, int(own.max()))
        if own.any() and own.ndim > 1:
            self.repeated += int(np.count_nonzero(own)) - int(np.count_nonzero(_distinct_rows(local, own)))

    @property
    def passed(self) -> bool:
        """Whether the operation by itself keeps to its tolerance."""
        alone = self.local_unequal - self.repeated
        return self.local_greatest <= self.tolerance.steps and alone <= self.tolerance.allowed(self.elements)

    def __str__(self) -> str:
        share = 100 * self.local_unequal / max(self.elements, 1)
        return f"{self.name} ({self.operation}): {share:.4f} % by at most {self.local_greatest}"


def _distinct_rows(codes: np.ndarray, differing: np.ndarray) -> np.ndarray:
    """The rows of `differing` without those of equal rows of `codes`, along the last axis: what is computed many
    times, as for the padding of a text, comes out at a tie many times.
    """
    rows = codes.reshape(-1, codes.shape[-1])
    concerned = differing.reshape(rows.shape).any(1)
    _, first = np.unique(rows[concerned], axis=0, return_index=True)
    return differing.reshape(rows.shape)[concerned][first]


@dataclass
class Parity:
    """A comparison of a converted network with one way of running its file: `runtime` is "unfused", every node
    as it stands, or "fused", with the kernels that ONNX Runtime puts together. `agreement` is the share of equal
    top-1 results in percent, `exact_outputs` that of equal output numbers, `error` their greatest difference;
    `local_error` is the greatest difference of any output, computed on the runtime's own integers, as a share of
    the output's greatest number.
    """

    runtime: str
    tensors: list[TensorParity]
    images: int = 0
    agreement: float = 100.0
    exact_outputs: float = 100.0
    error: float = 0.0
    local_error: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every operation keeps to its tolerance, and what comes out is what the integers stand for."""
        return all(tensor.passed for tensor in self.tensors) and self.local_error <= OUTPUT_ERROR

    @property
    def unequal(self) -> int:
        """Integers that differ, over all tensors."""
        return sum(tensor.unequal for tensor in self.tensors)

    @property
    def elements(self) -> int:
        """Integers that were compared."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def first_divergence(self) -> TensorParity | None:
        """The first tensor, in the order of the data, whose own operation differs."""
        return next((tensor for tensor in self.tensors if tensor.local_unequal), None)

    def cause(self) -> str | None:
        """Why the first tensor that differs does, as far as it is known."""
        first = self.first_divergence
        if first is not None and first.tolerance is OTHERWISE:
            return "the backend rounds otherwise than ONNX"
        return None if first is None else cause_of(first.operation, self.runtime)

    def __str__(self) -> str:
        lines = [
            f"{self.runtime}: {'passed' if self.passed else 'FAILED'}, {self.unequal} of {self.elements} integers "
            f"differ over {self.images} images, top-1 agrees on {self.agreement:.2f} %"
        ]
        first = self.first_divergence
        if first is not None:
            lines += [f"  first at {first}", f"  cause: {self.cause()}"]
        beyond = [tensor for tensor in self.tensors if not tensor.passed]
        lines += [f"  beyond tolerance: {tensor}" for tensor in beyond[:MOST_NAMED]]
        if len(beyond) > MOST_NAMED:
            lines.append(f"  and {len(beyond) - MOST_NAMED} more")
        if not self.local_error <= OUTPUT_ERROR:
            lines.append(f"  the outputs of equal integers differ by {self.local_error:.2g} of the greatest")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@torch.no_grad()
def compare(
    network: ConvertedModule, file: str | Path | onnx.ModelProto, inputs: tuple[Any, ...], batch: int | None = BATCH
) -> list[Parity]:
    """Compares the network with the file on `inputs`, without and with the runtime's fusions.

    The inputs are taken `batch` at a time, or all at once with None, as a file of fixed batch size needs it.
    Raises ExportError when the file lacks a tensor of the network: a quantizer was lost.
    """
    model = onnx.load(file) if isinstance(file, str | Path) else file
    network = copy.deepcopy(network).cpu()
    for module in network.modules():
        if isinstance(module, IntegerLayer):
            module.readers = []  # every tensor is to be seen as codes
    names = tensor_names(network)
    exposed = expose(model, names)
    comparisons = [_Comparison(network, exposed, names, fused) for fused in (False, True)]
    for part in _parts(inputs, batch):
        ours = _Run(network)
        result = ours.run(*part)
        for comparison in comparisons:
            comparison.add(part, ours.codes, result)
    return [comparison.finished() for comparison in comparisons]


def expose(model: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    """A copy of the model that also returns each integer tensor, those by themselves that are one value in it."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    for twin, name in json.loads(
        next((prop.value for prop in model.metadata_props if prop.key == MERGED), "{}")
    ).items():
        exposed.graph.node.append(helper.make_node("Identity", [f"{name}/codes"], [f"{twin}/codes"]))
    there = {output for node in exposed.graph.node for output in node.output}
    there |= {initializer.name for initializer in exposed.graph.initializer}  # codes of constants
    missing = [name for name in names.values() if f"{name}/codes" not in there]
    if missing:
        raise ExportError(f"The file has lost {len(missing)} quantizers: {', '.join(missing[:5])}.")
    types = {info.name: info for info in model.graph.value_info}
    for name in names.values():
        exposed.graph.output.append(types.get(f"{name}/codes") or helper.make_empty_tensor_value_info(f"{name}/codes"))
    return exposed


class _Comparison:
    """One way of running the file, compared batch by batch."""

    def __init__(self, network: ConvertedModule, model: onnx.ModelProto, names: dict[str, str], fused: bool) -> None:
        self.network, self.names = network, names
        self.runtime = Runtime(model, fused)
        operations = network.operations
        self.checks = {
            key: TensorParity(name, operations[key], tolerance_of(operations[key], network.qconfig_of(key)))
            for key, name in names.items()
        }
        rounding = network.backend.rounding
        self.parity = Parity("fused" if fused else "unfused", list(self.checks.values()))
        if rounding is not Rounding.HALF_EVEN and any(node.op_type in HALF_EVEN_ONLY for node in model.graph.node):
            self.parity.notes.append(f"the backend rounds {rounding.value}, these operators of ONNX half_even")
            for check in self.checks.values():
                check.tolerance = OTHERWISE if check.operation != "moved" else check.tolerance
        self.ours: list[Tensor] = []
        self.theirs: list[Tensor] = []

    def add(self, part: tuple[Any, ...], codes: dict[str, Tensor], result: Any) -> None:
        """Takes in one batch, for which the network gave `codes` and `result`."""
        leaves = [leaf for leaf in pytree.tree_leaves(part) if isinstance(leaf, Tensor)]
        theirs = self.runtime.run([leaf.numpy() for leaf in leaves])
        given = {key: _like(codes[key], theirs[f"{name}/codes"]) for key, name in self.names.items()}
        local = _Run(self.network, given)
        outputs = [tensor for _, tensor in tensors_in(local.run(*part))]
        for name, output in zip(self.runtime.outputs, outputs, strict=False):  # it gives the codes behind them
            self.parity.local_error = max(_relative_error(output, theirs[name]), self.parity.local_error)
        for key, check in self.checks.items():
            check.add(codes[key].numpy(), given[key].numpy(), local.codes[key].numpy())
        self.ours.append(next(tensor for _, tensor in tensors_in(result)))
        self.theirs.append(torch.from_numpy(next(iter(theirs.values()))))
        self.parity.images += len(leaves[0]) if leaves and leaves[0].dim() else 1

    def finished(self) -> Parity:
        """The comparison of all batches; the outputs are compared by the first of them."""
        ours, theirs = torch.cat(self.ours), torch.cat(self.theirs)
        self.parity.exact_outputs = 100 * float((ours == theirs).double().mean())
        self.parity.error = float((ours - theirs).abs().max())
        if ours.dim() > 1:
            self.parity.agreement = 100 * float((ours.argmax(1) == theirs.argmax(1)).double().mean())
        if self.runtime.avoids_saturation:
            self.parity.notes.append(
                "this host's kernels for signed 8-bit weights saturate (no VNNI): compared without them"
            )
        return self.parity


def _relative_error(ours: Tensor, theirs: np.ndarray) -> float:
    """The greatest difference of real outputs as a share of the greatest of them; infinite where one is NaN."""
    other = torch.from_numpy(theirs)
    if not ours.is_floating_point() or not ours.numel():
        return 0.0
    difference = torch.where(ours == other, 0.0, (ours - other).abs())
    share = difference.max() / ours.abs().max().clamp(min=torch.finfo(ours.dtype).tiny)
    return float(share.nan_to_num(nan=torch.inf))


def _like(ours: Tensor, theirs: np.ndarray) -> Tensor:
    """The file's codes as the network writes them: an integer file holds signed ones 128 greater."""
    codes = torch.from_numpy(theirs)
    return (
        (codes.to(torch.int16) - 128).to(torch.int8)
        if ours.dtype == torch.int8 and codes.dtype == torch.uint8
        else codes
    )


def _parts(inputs: tuple[Any, ...], batch: int | None) -> Iterator[tuple[Any, ...]]:
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()]
    inputs = pytree.tree_map(lambda x: x.detach().cpu() if isinstance(x, Tensor) else x, inputs)
    length = len(leaves[0]) if leaves else 1
    if batch is None or length <= batch:
        yield inputs
        return
    for start in range(0, length, batch):
        yield pytree.tree_map(
            lambda x: x[start : start + batch] if isinstance(x, Tensor) and x.dim() else x,  # noqa: B023
            inputs,
        )


class _Run(Interpreter):
    """Runs a converted network and keeps its integer tensors in `codes`. With `given`, every operation works on
    those integers instead of the ones that came before it.
    """

    def __init__(self, network: ConvertedModule, given: dict[str, Tensor] | None = None) -> None:
        super().__init__(network.tree, graph=network.fx_graph)
        self.given = given or {}
        self.codes: dict[str, Tensor] = {}
        self.tensors = set(network.tensors)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.tensors:
            self.codes[n.name] = value
            return self.given.get(n.name, value)
        return value
