"""How a range is found: one file an idea. Importing the package registers all of them."""

from edgeq.observers import histogram, minmax, moving_average, squared_error, statistics
from edgeq.observers.base import Observer
from edgeq.observers.registry import OBSERVERS

__all__ = ["OBSERVERS", "Observer", "histogram", "minmax", "moving_average", "squared_error", "statistics"]
