"""The extremes of everything seen."""

from __future__ import annotations

from edgeq.observers.base import Observer
from edgeq.observers.registry import OBSERVERS


@OBSERVERS.register("minmax")
class MinMaxObserver(Observer):
    """The range from the smallest to the greatest value of all batches."""

    for_weights = True
