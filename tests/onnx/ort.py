"""Exported files, and ONNX Runtime by hand, so that edgeq's comparison is not the only judge of edgeq's files."""

from __future__ import annotations

import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

import edgeq
from edgeq.modules.codes import OnCodes, Quantize
from edgeq.modules.integer import IntegerLayer, IntegerMatmul
from edgeq.modules.pair import IntegerPair
from edgeq.onnx.session import saturates, with_unsigned_weights
from tests.networks import batches, network
from tests.test_presets import CALIBRATED

POWER_OF_TWO = tuple(name for name in CALIBRATED if "P2" in name)
FREE = tuple(name for name in CALIBRATED if "P2" not in name)
LEVEL = onnxruntime.GraphOptimizationLevel


@lru_cache
def calibrated(name: str, preset: str = "DEFAULT", seed: int = 0) -> edgeq.PTCFxModule:
    return edgeq.PTCFxModule(network(name, seed), preset).calibrate(batches())


@lru_cache
def converted(name: str, preset: str = "DEFAULT", seed: int = 0) -> edgeq.IntegerModule:
    return calibrated(name, preset, seed).convert()


@lru_cache
def image(size: int = 4, seed: int = 9) -> torch.Tensor:
    return batches(1, seed, size)[0]


def exported(name: str, preset: str = "DEFAULT", kind: str = "qdq", size: int = 4, **options) -> onnx.ModelProto:
    """The file of a converted network; not to be changed, since tests share it."""
    given = sorted((key, value) for key, value in options.items() if value is not False)
    return _exported(name, preset, kind, size, tuple(given))


@lru_cache
def _exported(name: str, preset: str, kind: str, size: int, options: tuple) -> onnx.ModelProto:
    return written(converted(name, preset), image(size), format=kind, verify=False, **dict(options))


def written(module, inputs, **options) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        module.export(inputs, Path(folder, "model.onnx"), **options)
        return onnx.load(Path(folder, "model.onnx"))


def calibrated_on(model, *inputs, preset: str = "DEFAULT") -> edgeq.PTCFxModule:
    """A network of a test's own, calibrated on one batch."""
    wrapped = edgeq.PTCFxModule(model.eval(), preset)
    wrapped.train()
    wrapped(*inputs)
    return wrapped.eval()


def changed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that a test may spoil."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def numbers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The initializers."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def nodes_of(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


def readers(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if name in node.input]


def session(model: onnx.ModelProto, fused: bool, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = LEVEL.ORT_ENABLE_ALL if fused else LEVEL.ORT_DISABLE_ALL
    if saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
        model = model if fused else with_unsigned_weights(model)
    if optimized is not None:
        options.graph_optimization_level = LEVEL.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, *inputs: torch.Tensor, fused: bool) -> dict[str, np.ndarray]:
    """All outputs of the file and all of its integer tensors, by name."""
    model = changed(model)
    known = {output.name for output in model.graph.output}
    codes = [name for node in model.graph.node for name in node.output if name.endswith("/codes") and name not in known]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in codes)
    made = session(model, fused)
    feeds = {value.name: x.numpy() for value, x in zip(made.get_inputs(), inputs, strict=True)}
    names = [output.name for output in made.get_outputs()]
    return dict(zip(names, made.run(names, feeds), strict=True))


def optimized(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes of each operator the runtime makes of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimized.onnx")
        session(model, fused=True, optimized=path)
        return Counter(node.op_type for node in onnx.load(path).graph.node)


def codes_of(module: edgeq.IntegerModule, *inputs, given: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """The integers that each module of a converted network gives, under their names in a file. With `given` each
    works on those integers instead of the ones that came before it.
    """
    found: dict[str, np.ndarray] = {}

    def keep(name):
        def hook(layer, args, output):
            if not isinstance(output, torch.Tensor) or output.is_floating_point():
                return None
            found[name] = output.numpy()
            return output if given is None else torch.from_numpy(like(given[name], output.numpy()))

        return hook

    hooks = []
    for path, layer in module.module.named_modules():
        if isinstance(layer, IntegerLayer | IntegerMatmul | IntegerPair | Quantize | OnCodes):
            for part in ("tensors", "movers", "layers"):
                path = path.removeprefix(f"quantization.{part}.")
            hooks.append(layer.register_forward_hook(keep(f"{path}/codes")))
    try:
        module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def like(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """Codes of a file in the type of the network's: an integer file holds signed ones as unsigned, 128 greater."""
    shift = 128 if theirs.dtype == np.uint8 and ours.dtype == np.int8 else 0
    return (theirs.astype(np.int16) - shift).astype(ours.dtype)


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How many steps each integer is off, of every tensor of the network, all of which the file must have."""
    return {
        name: np.abs(codes.astype(np.int16) - like(theirs[name], codes).astype(np.int16))
        for name, codes in ours.items()
    }
