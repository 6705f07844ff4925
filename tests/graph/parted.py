"""Networks made of parts: a backbone that gives two maps, a head that is called on each, and Python around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import edgeq
from tests.graph.parity import images

PARTS = ["backbone", "head"]
SHAPE = (4, 3, 16, 16)


class Block(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Backbone(nn.Module):
    """Two maps, the second of half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 8
        self.stem, self.down = Block(3, 8), Block(8, 8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stem(x)
        return {"fine": fine, "coarse": self.down(fine)}

    def describe(self, word: str) -> str:
        return f"{word}: {self.channels} channels"


class Head(nn.Module):
    """Scores of three classes at each place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("prior", torch.tensor([0.5, 0.25, 0.125]))
        self.hidden, self.drop, self.out = Block(8, 8), nn.Dropout(0.3), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.hidden(x)))

    def mode(self) -> bool:
        return self.training


class Plain(nn.Module):
    """What stands around the parts can be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.norm, self.drop = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.backbone, self.head = Backbone(), Head()
        self.threshold = -1e9

    def scores(self, x: Tensor) -> Tensor:
        maps = self.backbone(self.drop(self.norm(self.entry(x))))
        scores = torch.cat([self.head(m).flatten(2) for m in maps.values()], 2)
        return scores * self.head.prior[:, None] / self.backbone.channels**0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x)


class Detector(Plain):
    """What stands around the parts cannot: a loss in training, and a decision by value in evaluation."""

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        scores = self.scores(x)
        if self.training:
            return {"loss": (scores - (0 if target is None else target)).square().mean()}
        if scores.max() < self.threshold:
            return scores * 0
        return scores

    def predict(self, x: Tensor) -> Tensor:
        return self(x).argmax(1)


def detector(kind: type[Any] = Detector, seed: int = 0) -> Any:
    """A network of that class, in eval mode, with batch norms that are not those of a fresh one."""
    torch.manual_seed(seed)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def data(count: int = 2, seed: int = 1) -> list[Tensor]:
    """Batches."""
    return [images(*SHAPE, seed=seed + number) for number in range(count)]


def calibrated(kind: type[Any] = Detector, **options: Any) -> edgeq.PTCFxModule:
    """A calibrated network with its two parts quantized, or as `options` say."""
    options = options if {"submodules", "standalone"} & {*options} else {"submodules": PARTS, **options}
    return edgeq.PTCFxModule(detector(kind), **options).calibrate(data())


def training(kind: type[Any] = Detector, **options: Any) -> edgeq.QATFxModule:
    """The same in training, before the first step."""
    options = options if {"submodules", "standalone"} & {*options} else {"submodules": PARTS, **options}
    return edgeq.QATFxModule(detector(kind).train(), **({"total_epochs": 4} | options))


def train(wrapped: nn.Module, epochs: int = 1, batches: list[Tensor] | None = None) -> None:
    """Epochs of training on the network's own loss, or on the mean square of what it gives."""
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
    for epoch in range(epochs):
        wrapped.train()
        for number, batch in enumerate(data() if batches is None else batches):
            torch.manual_seed(10 * epoch + number)  # dropout
            optimizer.zero_grad()
            output = wrapped(batch)
            (output["loss"] if isinstance(output, dict) else output.float().square().mean()).backward()
            optimizer.step()


def counted(wrapped: Any) -> list[tuple[int, int]]:
    """Epoch and step of each part."""
    module = wrapped.module
    parts = module.parts.values() if hasattr(module, "parts") else [module, *module.standalone()]
    return [(int(part.schedule.epoch), int(part.schedule.step)) for part in parts]


def layers(wrapped: Any) -> dict[str, int]:
    """The bits of the weight of each quantized layer, by its path."""
    found = {}
    for path, part in wrapped.module.parts.items():
        for layer in part.quantized_layers():
            found[f"{path}.{layer.site.name}"] = layer.weight_quantizer.spec.bits
    return found
