"""What rewrites have changed in a graph, and by how much that changes what it computes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """One change. `difference` is the greatest absolute difference between what the place gave before and what it
    gives now, on normal random data of the right shape; `size` the greatest absolute value that it gave before.
    """

    rewrite: str
    place: str
    what: str
    difference: float
    size: float
    keeps: bool

    def __str__(self) -> str:
        measured = "the function stays" if self.keeps else f"difference up to {self.difference:.3g} on normal data"
        return f"{self.rewrite}  {self.place}: {self.what} ({measured})"


@dataclass(frozen=True)
class Changes:
    """All changes, in order. `difference` is the greatest absolute difference between the outputs of the whole
    network before and after, on its example inputs, and `size` the greatest absolute output; both are None
    without example inputs.
    """

    each: tuple[Change, ...] = ()
    difference: float | None = None
    size: float | None = None

    def __str__(self) -> str:
        lines = [str(change) for change in self.each]
        if self.each and self.difference is not None and self.size is not None and not math.isnan(self.difference):
            lines.append(f"outputs on the example inputs: difference up to {self.difference:.3g} of {self.size:.3g}")
        return "\n".join(lines)
