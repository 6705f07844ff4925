"""The networks of the zoo, by name and family."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from recipes.zoo import timm_networks, torchvision_networks, transformers_networks
from recipes.zoo.stages import Subject

SOURCES = (torchvision_networks, timm_networks, transformers_networks)
FAMILIES = {family: names for source in SOURCES for family, names in source.FAMILIES.items()}
SHORT = ("mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")  # one of each kind that tests have time for


def family_of(name: str) -> str:
    """The family of a network. Raises KeyError, with the nearest name, for an unknown one."""
    for family, names in FAMILIES.items():
        if name in names:
            return family
    known = [known for names in FAMILIES.values() for known in names]
    raise KeyError(f"no network {name!r} in the zoo; near: {get_close_matches(name, known) or list(FAMILIES)}")


def subject(name: str) -> Subject:
    """The network of that name, not built yet."""
    family = family_of(name)
    source = next(source for source in SOURCES if family in source.FAMILIES)
    return source.subject(name, family)


def choose(names: Sequence[str], sample: bool) -> list[str]:
    """The networks that are named, by themselves or by family; all where none is."""
    if sample:
        return list(SHORT)
    chosen: list[str] = []
    for name in names or FAMILIES:
        chosen += FAMILIES.get(name) or [subject(name).name]
    return chosen
