"""Networks side by side: accuracy, agreement, size and time of float, simulated and converted ones, and of files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from recipes.training import Network, accuracy, logits, milliseconds


class Data(Protocol):
    """What networks are compared on: batches of (inputs, labels), and one batch of inputs to take the time of."""

    test: DataLoader

    @property
    def example(self) -> Tensor:
        """One batch of test inputs."""


def runtime(path: Path) -> Network:
    """The file as ONNX Runtime runs it, on as many threads as PyTorch does."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # CPUs without VNNI add pairs of 8-bit products in 16 bits, unless they are told not to.
    settings.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {name: inputs.numpy()})[0]))

    return run


def state_size(model: nn.Module) -> int:
    """Bytes of the saved weights."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def table(networks: dict[str, Network], sizes: dict[str, int], data: Data) -> str:
    """One row a network: accuracy, agreement with the one called "float", size, time, and equality with "trained
    quantized", which is what was validated.
    """
    found = {name: logits(network, data.test, name) for name, network in networks.items()}
    times = milliseconds(networks, data.example)
    reference, validated = found["float"][0], found["trained quantized"][0]
    rows = [("network", "top-1 %", "agrees with float %", "KiB", f"ms / {len(data.example)} inputs", "equal outputs %")]
    for name, (outputs, labels) in found.items():
        size = f"{sizes[name] / 1024:.0f}" if name in sizes else ""
        agreement = f"{accuracy(outputs, reference.argmax(1)):.2f}"
        same = 100 * (outputs == validated).float().mean().item()
        equal = "" if name in ("float", "calibrated") else f"{same:.2f}"
        rows.append((name, f"{accuracy(outputs, labels):.2f}", agreement, size, f"{times[name]:.2f}", equal))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
