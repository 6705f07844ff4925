"""Which class of PyTorch's a module computes as."""

from __future__ import annotations

from functools import cache
from inspect import get_annotations
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

BOOKKEEPING = {  # methods that a subclass may have its own way with: none decides what its forward computes
    *("extra_repr", "reset_parameters", "_reset_parameters", "reset_running_stats", "_check_input_dim"),
    *("_load_from_state_dict", "_save_to_state_dict", "from_pretrained"),
}


def torch_class(module: nn.Module | None) -> type[Any]:
    """The class of torch.nn whose forward `module` has, with all that the forward uses: that of a subclass which adds
    nothing to what is computed. Else the module's own class.
    """
    return type(None) if module is None else _torch_class(type_before_parametrizations(module))


@cache
def _torch_class(cls: type[nn.Module]) -> type[nn.Module]:
    base = next(base for base in cls.__mro__ if base.__module__.startswith("torch.nn") and issubclass(base, nn.Module))
    return cls if base is nn.Module or overrides(cls, base) else base


def overrides(cls: type[nn.Module], base: type[nn.Module]) -> bool:
    """Whether `cls` has anything of its own that decides what the forward of `base` computes: a method, or a property
    in the place of an attribute.
    """
    names = {"forward", "weight", "bias"}
    for part in base.__mro__[: base.__mro__.index(nn.Module)]:
        names.update(vars(part).keys() | get_annotations(part).keys())
    used = (name for name in names - BOOKKEEPING if not name.startswith("__"))
    return any(getattr(cls, name, None) is not getattr(base, name, None) for name in used)
