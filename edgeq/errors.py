"""The errors of edgeq. Each message says what was given, where it stands, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgeqError(Exception):
    """The base of every error that edgeq raises on purpose."""


class SpecError(EdgeqError, ValueError):
    """A preset, a backend or an argument that cannot be used as it stands."""


class NothingToQuantizeError(SpecError):
    """A network without any layer that can be quantized."""


class TraceError(EdgeqError, RuntimeError):
    """A model whose graph could not be captured."""


class CalibrationError(EdgeqError, RuntimeError):
    """Ranges that are missing, or that the data made useless."""


class ExportError(EdgeqError, RuntimeError):
    """A file that could not be written, or that does not hold what it should."""


def suggestion(given: object, choices: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest choice if one is near, else all of them."""
    names = sorted(choices)
    folded = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(given).lower(), folded, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {folded[near[0]]!r}? (Known: {', '.join(names)}.)"
    return f"Known: {', '.join(names)}."
