"""A network made of parts and a function that wires them, for scenarios that need only a few operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import edgeq
from tests.graph.parity import assert_exact, leaves, relative_error


class Wired(nn.Module):
    """Calls `function` with itself and its inputs. Tensors among the parts become parameters."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


class WiredPair(Wired):
    """The same, with two inputs."""

    def forward(self, x: Any, y: Any) -> Any:  # type: ignore[override]
        return self.function(self, x, y)


def conv(inputs: int = 3, outputs: int = 3, kernel: int = 1, **options: Any) -> nn.Conv2d:
    """A convolution with weights that depend on its sizes only."""
    torch.manual_seed(inputs + 10 * outputs)
    return nn.Conv2d(inputs, outputs, kernel, **options)


def norm(channels: int = 3, cls: type[nn.Module] = nn.BatchNorm2d) -> Any:
    """A batch norm whose statistics and parameters are not those of a fresh one."""
    torch.manual_seed(channels)
    made: Any = cls(channels)
    nn.init.uniform_(made.weight, 0.5, 1.5)
    nn.init.normal_(made.bias, 0, 0.3)
    made.running_mean.normal_(0, 0.3)
    made.running_var.uniform_(0.5, 2)
    return made.eval()


def trained(model: nn.Module, *inputs: Any, steps: int = 2, preset: Any = "WC8_AT8", **options: Any) -> Any:
    """The wrapped model after a few training steps, in eval mode."""
    wrapped = edgeq.QATFxModule(model.train(), preset, total_epochs=4, **options).train()
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = [value for value in leaves(wrapped(*inputs)) if isinstance(value, Tensor)]
        sum(value.float().square().mean() for value in outputs if value.requires_grad).backward()  # type: ignore[union-attr]
        optimizer.step()
    return wrapped.eval()


def folded(wrapped: Any) -> dict[str, str]:
    """What is folded into each layer and product, by name, as the table tells it."""
    header, *lines = wrapped.explain().splitlines()
    start, end = header.index("folded"), header.index("value")
    layers = {module.site.name for module in wrapped.module.modules() if hasattr(module, "site")}
    names = [line[: header.index("weight")].strip() for line in lines]
    return {name: line[start:end].strip() for name, line in zip(names, lines, strict=True) if name in layers}


def bounds(wrapped: Any) -> dict[str, tuple[float | None, float | None]]:
    """The bounds of the activations that are folded in, by the name of the quantizer behind them."""
    nodes = {
        str(node.target).rsplit(".", 1)[-1]: (node.kwargs.get("floor"), node.kwargs.get("ceiling"))
        for node in wrapped.module.fx_graph.nodes
        if {"floor", "ceiling"} & {*node.kwargs}
    }
    sites = [module.site for module in wrapped.module.modules() if hasattr(module, "site")]
    layers = {site.target.name: (site.floor, site.ceiling) for site in sites if site.target is not None}
    return nodes | {name: ends for name, ends in layers.items() if ends != (None, None)}


def quantizers(wrapped: Any) -> list[str]:
    """The names of the quantizers of activations, in the order of the graph."""
    return [quantizer.name for quantizer in wrapped.module.quantizers()]


@torch.no_grad()
def assert_near(wrapped: Any, model: nn.Module, *inputs: Any, within: float = 0.02) -> None:
    """The converted network gives what the simulation does, bit for bit, and nearly what the float model does."""
    assert_exact(wrapped, *inputs)
    assert relative_error(wrapped(*inputs), model.eval()(*inputs)) < within
