"""Which submodules of a model a user means by names and classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgeq.errors import SpecError, suggestion
from edgeq.presets import Preset
from edgeq.spec import QConfig

Key = str | type[nn.Module]
Submodules = Iterable[Key] | Mapping[Key, Preset | None]


@dataclass(frozen=True)
class Choice:
    """A submodule that is to be quantized by itself under `qconfig`, and what it was chosen by."""

    path: str
    key: Key | None
    qconfig: QConfig

    @property
    def is_optional(self) -> bool:
        """Whether it may turn out to have nothing to quantize, since nobody has named it."""
        return self.key != self.path

    @property
    def strength(self) -> tuple[bool, int]:
        """A name is stronger than a class, the name of an item than that of its list, a class than its base."""
        if isinstance(self.key, str):
            return True, self.key.count(".")
        return False, len(self.key.__mro__) if self.key else 0


def chosen(
    model: nn.Module, wanted: Submodules, argument: str, settled: Callable[[Preset | None], QConfig]
) -> list[Choice]:
    """The submodules that `wanted`, the value of `argument`, means: names, and classes, which stand for all outermost
    submodules of that class. What has no forward, such as an `nn.ModuleList`, stands for its items.

    Raises SpecError for a name or a class that is nobody's, a submodule inside of another one that is chosen, and one
    with two names and two presets.
    """
    if isinstance(wanted, str | type):
        name = repr(wanted) if isinstance(wanted, str) else wanted.__name__
        raise SpecError(f"{argument} is a list of names and classes, or a dict from them, got {name}: write [{name}].")
    items: Mapping[Any, Preset | None] = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted)
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[nn.Module, Choice] = {}
    for key, preset in items.items():
        qconfig = settled(preset)
        for path in _meant(model, key, argument):
            choice, other = Choice(path, key, qconfig), found.get(modules[path])
            if other is None or choice.strength > other.strength:
                found[modules[path]] = choice
            elif choice.strength == other.strength and qconfig != other.qconfig:
                raise SpecError(f"{argument} has one module by two names and presets: {other.path!r}, {path!r}.")
    if not found:
        raise SpecError(f"{argument} has no submodule in it: {wanted!r}.")
    _require_apart(found, argument)
    return list(found.values())


def _meant(model: nn.Module, key: Any, argument: str) -> list[str]:
    """The paths of the submodules that one item of `argument` stands for."""
    if isinstance(key, str):
        names = {path for path, _ in model.named_modules(remove_duplicate=False) if path}
        if key not in names:
            raise SpecError(f"{argument} names {key!r}, which the model does not have. {suggestion(key, names)}")
        paths = [key]
    elif isinstance(key, type):
        paths = [path for path, module in model.named_modules() if path and isinstance(module, key)]
        paths = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
        if not paths:
            raise SpecError(f"No submodule of {type(model).__name__} is a {key.__name__}, which {argument} has.")
    else:
        raise SpecError(f"{argument} has a {type(key).__name__} in it: give names or classes of submodules.")
    return [inner for path in paths for inner in _called(path, model.get_submodule(path))]


def _called(path: str, module: nn.Module) -> list[str]:
    """The path of a module that can be called, or those of what is in it."""
    if type(module).forward is not nn.Module.forward:
        return [path]
    return [inner for name, child in module.named_children() for inner in _called(f"{path}.{name}", child)]


def _require_apart(found: Mapping[nn.Module, Choice], argument: str) -> None:
    for outer, choice in found.items():
        for inner in outer.modules():
            if inner is not outer and inner in found:
                inside, around = found[inner].path, choice.path
                raise SpecError(f"{argument} names {inside!r}, which is inside of {around!r}: name one of them.")
