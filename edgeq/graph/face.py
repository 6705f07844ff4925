"""A module that looks like a user's model from outside, with other modules where some of its own were."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class Faced(nn.Module):
    """Runs the forward of `face`, an object of the user's own class, whose children, parameters and buffers it has
    under the same names. What else the face has, attributes and methods, can be reached here too.
    """

    def __init__(self, face: nn.Module) -> None:
        super().__init__()
        for kind in SHARED:
            self.__dict__[kind] = face.__dict__[kind]
        self.__dict__["_face"] = face
        self.training = face.training

    @property
    def face(self) -> nn.Module:
        """The object of the user's class."""
        return self.__dict__["_face"]

    @property
    def argument_names(self) -> list[str]:
        """The names of the arguments of the forward, in order."""
        return list(inspect.signature(self.face.forward).parameters)

    @property
    def argument_defaults(self) -> dict[str, Any]:
        """The defaults of those arguments that have one."""
        parameters = inspect.signature(self.face.forward).parameters.values()
        return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.face(*args, **kwargs)

    def get_submodule(self, target: str) -> Any:
        """The user's module at a path, whatever it is called."""
        return self.face.get_submodule(target) if target else self

    def __getattr__(self, name: str) -> Any:
        return attribute_of(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What the face has is set there, where its forward sees it."""
        face = self.__dict__.get("_face")
        is_own = face is None or name in self.__dict__ or hasattr(type(self), name)
        super().__setattr__(name, value) if is_own else setattr(face, name, value)


def attribute_of(module: nn.Module, name: str) -> Any:
    """What `module` lacks as an attribute of its own: a child, a parameter, a buffer, or an attribute of its face."""
    try:
        return nn.Module.__getattr__(module, name)
    except AttributeError:
        face = module.__dict__.get("_face")
        if face is None or name.startswith("__"):
            raise
        return getattr(face, name)


def own_names(module: nn.Module) -> set[str]:
    """What the user's class of `module` has that not every module has: attributes, children, tensors and methods."""
    if type(module).__module__.startswith("torch."):
        return set()
    found = {*vars(module), *module._modules, *module._parameters, *module._buffers}
    for cls in type(module).__mro__[: type(module).__mro__.index(nn.Module)]:
        found.update(vars(cls))
    return found - {*dir(nn.Module), *vars(nn.Module())}
