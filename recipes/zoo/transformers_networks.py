"""Small encoders of Hugging Face's transformers, built from a config."""

from __future__ import annotations

from recipes.zoo.stages import Subject

FAMILIES: dict[str, tuple[str, ...]] = {"transformers": ()}


def subject(name: str, family: str) -> Subject:
    """One of the networks above."""
    raise NotImplementedError
