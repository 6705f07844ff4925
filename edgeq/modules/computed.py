"""Weights that are computed from other parameters whenever they are read: `torch.nn.utils.parametrize`, and what the
older `torch.nn.utils.weight_norm`, `spectral_norm` and `prune` write before each forward pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


class Computation(NamedTuple):
    """How a weight is computed, and the tensors that it is computed from."""

    compute: Callable[[], Tensor]
    sources: list[Tensor]


def computation_of(layer: nn.Module, name: str) -> Computation | None:
    """The computation of the attribute `name` of a quantized layer; None for one that is not computed."""
    parametrizations = layer.__dict__["_modules"].get("parametrizations")
    if isinstance(parametrizations, nn.ModuleDict) and name in parametrizations:
        parametrization = parametrizations[name]
        return Computation(parametrization, [*parametrization.parameters(), *parametrization.buffers()])
    hook = layer.__dict__.get("weight_hooks", {}).get(name)
    if hook is None:
        return None

    def compute() -> Tensor:
        hook(layer, ())
        return layer.__dict__.pop(name)

    return Computation(compute, [*layer.parameters(recurse=False), *layer.buffers(recurse=False)])


def has_computed_weight(module: nn.Module) -> bool:
    """Whether an attribute of a module of the user's is computed whenever it is read, or before each forward pass."""
    written = (_written_by(hook) for hook in module._forward_pre_hooks.values())
    return is_parametrized(module) or any(name in vars(module) for name in written)


def _written_by(hook: Any) -> Any:
    """The name of the attribute that a hook of `weight_norm`, `spectral_norm` or `prune` writes; None for others."""
    return getattr(hook, "name", getattr(hook, "_tensor_name", None))


def picklable(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a module without the hooks on loading that are functions inside of functions, as `weight_norm` has
    one for files of its older form: no module can be pickled with them.
    """
    hooks = state["_load_state_dict_pre_hooks"].items()
    kept = {key: hook for key, hook in hooks if "<locals>" not in getattr(hook, "__qualname__", "")}
    return {**state, "_load_state_dict_pre_hooks": OrderedDict(kept)}


def take_over_hooks(layer: Any) -> None:
    """Makes what hooks write into a layer before each forward pass an attribute that is computed when it is read. As
    written it would be out of date from the next step of an optimizer on, and cannot be copied with its gradient.
    """
    layer.weight_hooks = {}
    for key, hook in list(layer._forward_pre_hooks.items()):
        name = _written_by(hook)
        if name in layer.__dict__:
            layer.weight_hooks[name] = hook
            del layer._forward_pre_hooks[key], layer.__dict__[name]
