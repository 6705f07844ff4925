"""How a range is found: one file an idea. Importing the package registers all of them."""

from edgeq.observers import (
    entropy,
    histogram,
    minmax,
    moving_average,
    moving_squared_error,
    power_of_two_search,
    squared_error,
    statistics,
)
from edgeq.observers.base import Observer
from edgeq.observers.registry import OBSERVERS

__all__ = [
    "OBSERVERS",
    "Observer",
    "entropy",
    "histogram",
    "minmax",
    "moving_average",
    "moving_squared_error",
    "power_of_two_search",
    "squared_error",
    "statistics",
]
