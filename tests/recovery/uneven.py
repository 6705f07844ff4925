"""Networks whose channels have wildly unequal ranges, and what tests of steps that even them out have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

import edgeq
from edgeq.modules.layer import QuantizedLayer
from edgeq.recovery.samples import Samples, calls_of
from edgeq.recovery.work import Work
from tests.networks import batches, network

DATA = batches(8, seed=3, size=8)
WT8 = {"inherits": "MSA_WC8_AT8", "weight": {"granularity": "tensor"}, "recovery": []}


class Chain(nn.Module):
    """Three convolutions with batch norm and ReLU one after the other, and a linear layer behind their mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.norm3 = nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 5)
        for norm in (self.norm1, self.norm2, self.norm3):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
        self.train()
        for batch in DATA * 8:
            self(batch)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.fc(torch.relu(self.norm3(self.conv3(x))).mean((2, 3)))


@torch.no_grad()
def uneven(name: str = "chain", powers: float = 4.0) -> nn.Module:
    """A network whose channels, where they follow one another, have been given ranges that differ by up to
    2**(2 powers), without its function changing: of `Chain`, or of the network of tests with attention.
    """
    model = Chain() if name == "chain" else network(name)
    pairs = {
        "chain": [("norm1", "conv2"), ("norm2", "conv3"), ("norm3", "fc")],
        "attention": [("norm1", "qkv"), ("norm2", "fc1")],
    }
    for norm, following in pairs[name]:
        first, second = model.get_submodule(norm), model.get_submodule(following)
        factors = 2.0 ** torch.linspace(-powers, powers, first.weight.numel()).round()
        factors = factors[torch.randperm(len(factors), generator=torch.Generator().manual_seed(0))]
        first.weight.mul_(factors)
        first.bias.mul_(factors)
        is_depthwise = second.weight.dim() == 4 and second.groups > 1
        second.weight.transpose(0, 0 if is_depthwise else 1).div_(factors.reshape(-1, *[1] * (second.weight.dim() - 1)))
    return model


def with_relu(model: nn.Module) -> nn.Module:
    """The model with ReLU in the place of ReLU6."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.ReLU())
    return model


def calibrated(
    model: nn.Module, preset: Any = "WC8_AT8", data: Iterable[Any] = (), **options: Any
) -> edgeq.PTCFxModule:
    """The wrapped model, calibrated on `data`, without bias calibration."""
    options = {"bias_calibration_factor": 0.0, **options}
    return edgeq.PTCFxModule(model, preset, **options).calibrate(list(data) or DATA).eval()


def work_on(model: edgeq.PTCFxModule, data: Iterable[Any] = ()) -> Work:
    """What a step is handed."""
    return Work(model.module, Samples(calls_of(list(data) or DATA), 1 << 20), 0)


def layer(model: edgeq.PTCFxModule, name: str) -> QuantizedLayer:
    """The quantized layer of a name."""
    return next(found for found in model.module.quantized_layers() if found.site.name == name)


@torch.no_grad()
def decibels(expected: Tensor, found: Tensor) -> float:
    """The signal-to-noise ratio."""
    noise = (expected - found).double().square().sum()
    return float(10 * torch.log10(expected.double().square().sum() / noise))


@torch.no_grad()
def difference(expected: Tensor, found: Tensor) -> float:
    """The greatest difference, relative to the greatest number."""
    return float((expected - found).abs().amax() / expected.abs().amax())
