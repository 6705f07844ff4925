"""A unit of a prepared network as it runs while it learns: with weights and scales that are yet to be settled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, fx

from edgeq.graph.interpreter import Interpreter
from edgeq.graph.kinds import module_of
from edgeq.modules.layer import QuantizedLayer
from edgeq.modules.matmul import QuantizedMatmul
from edgeq.quantizers.tensor import TensorQuantizer, clip
from edgeq.recovery.learned_activation import LearnedActivation
from edgeq.recovery.unit_samples import floating
from edgeq.recovery.units import Unit

if TYPE_CHECKING:
    from edgeq.graph.prepared import PreparedModule


class LearnedWeight(Protocol):
    """The deployed weight of a layer while it learns. `scale`, shape () or (channels,), and `bias` are None where they
    stay what they are.
    """

    @property
    def parameters(self) -> list[tuple[Tensor, float]]:
        """What learns, and how fast beside the rate."""

    @property
    def scale(self) -> Tensor | None:
        """The scale, differentiable."""

    @property
    def bias(self) -> Tensor | None:
        """The bias, shape (channels,)."""

    def weight(self) -> Tensor:
        """As it is now, float32 and differentiable."""

    def penalty(self, progress: float) -> Tensor | None:
        """What is added to the loss after a part 0..1 of the steps; None for nothing."""

    def codes(self) -> Tensor:
        """The integers, float32, that it is hardened to."""


class LearningUnit(Interpreter):
    """Runs a unit over the network's own modules, but for those that quantize. Layers in `weights` have those, others
    their own codes; activations are quantized by `activations`. What `until_quantized` is true for is given as it is
    before its quantizer. Gradients reach what learns, and nothing of the network's own.
    """

    def __init__(self, network: PreparedModule, unit: Unit, until_quantized: bool) -> None:
        super().__init__(network.tree, graph=unit.graph)
        modules = {str(node.target): module_of(node, network.tree) for node in unit.nodes if node.op == "call_module"}
        self.unquantized = {node.name for node in unit.outputs} if until_quantized else set()
        self.activations: dict[TensorQuantizer, LearnedActivation] = {}
        self.weights: dict[QuantizedLayer, LearnedWeight] = {}
        self.layers = [module for module in modules.values() if isinstance(module, QuantizedLayer)]
        self.forms = {path: form for path, module in modules.items() if (form := self._form(module)) is not None}

    def _form(self, module: Any) -> Callable[..., Any] | None:
        """What runs instead of a module of the network's."""
        if isinstance(module, QuantizedLayer):
            return _Layer(module, self._activation(module.site.target), self.weights)
        if isinstance(module, QuantizedMatmul):
            return _Matmul(module, self._activation(module.site.target))
        return self._activation(module) if type(module) is TensorQuantizer else None

    def _activation(self, quantizer: TensorQuantizer | None) -> LearnedActivation | None:
        if quantizer is None:
            return None
        return self.activations.setdefault(quantizer, LearnedActivation(quantizer))

    def run_node(self, n: fx.Node) -> Any:
        form = self.forms.get(str(n.target)) if n.op == "call_module" else None
        if form is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return form(*args, **kwargs, quantizes=n.name not in self.unquantized)

    def outputs(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        """The floating tensors that the unit gives."""
        return floating(self.run(*inputs))


class _Layer:
    """A layer: with a weight that learns, or that of its codes."""

    def __init__(
        self, layer: QuantizedLayer, target: LearnedActivation | None, weights: dict[QuantizedLayer, LearnedWeight]
    ) -> None:
        self.layer, self.target, self.weights = layer, target, weights
        with torch.no_grad():
            weight, bias = layer.folded(layer.weight, layer.bias)
            self.weight = layer.weight_quantizer(weight)
            self.bias = None if bias is None else layer.quantized_bias(bias)

    def __call__(self, x: Tensor, quantizes: bool) -> Tensor:
        learned, site = self.weights.get(self.layer), self.layer.site
        weight, bias = self.weight, self.bias
        if learned is not None:
            weight = learned.weight().to(weight.dtype)
            bias = bias if learned.bias is None else learned.bias.to(weight.dtype)
        return _settled(self.layer.operation(x, weight, bias), self.target, site.floor, site.ceiling, quantizes)


class _Matmul:
    """A product of two quantized tensors."""

    def __init__(self, module: QuantizedMatmul, target: LearnedActivation | None) -> None:
        self.site, self.target = module.site, target

    def __call__(self, left: Tensor, right: Tensor, quantizes: bool) -> Tensor:
        return _settled(torch.matmul(left, right), self.target, self.site.floor, self.site.ceiling, quantizes)


def _settled(
    x: Tensor, target: LearnedActivation | None, floor: float | None, ceiling: float | None, quantizes: bool
) -> Tensor:
    """The activation function and the quantizer behind an operation."""
    return clip(x, floor, ceiling, fresh=False) if target is None else target(x, floor, ceiling, quantizes=quantizes)
