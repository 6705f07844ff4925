"""Ratios of times that a busy machine does not spoil: the contestants take turns, the median of the rounds counts."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from tqdm import tqdm

Run = Callable[[], object]  # what is timed
Setup = Callable[[], Run]  # what comes before and is not


@dataclass(frozen=True)
class Times:
    """Seconds of each contestant, one a round."""

    seconds: Mapping[str, list[float]]

    def milliseconds(self, name: str) -> float:
        """Median time of a contestant."""
        return 1000 * median(self.seconds[name])

    def ratio(self, name: str, reference: str) -> float:
        """Median over the rounds of the ratio of two times of the same round."""
        return median(self._ratios(name, reference))

    def quartiles(self, name: str, reference: str) -> tuple[float, float]:
        """Between which ratios half of the rounds lie."""
        ratios = self._ratios(name, reference)
        if len(ratios) == 1:
            return ratios[0], ratios[0]
        low, _, high = quantiles(ratios, method="inclusive")
        return low, high

    def _ratios(self, name: str, reference: str) -> list[float]:
        pairs = zip(self.seconds[name], self.seconds[reference], strict=True)
        return [own / other for own, other in pairs]


def interleaved(contestants: Mapping[str, Setup], rounds: int, title: str, warmup: int = 2) -> Times:
    """Times each contestant once a round, in turn; the first `warmup` rounds, which fill caches, do not count.

    With one thread the clock is the CPU time of this process, which other programs do not disturb as they do
    the time on the wall; with more threads their sum would say little, and the wall's is taken.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in tqdm(range(-warmup, rounds), desc=title, disable=None, leave=False):
        gc.collect()
        for name, setup in contestants.items():
            run = setup()
            gc.disable()  # nobody pays for the garbage of another
            start = clock()
            run()
            elapsed = clock() - start
            gc.enable()
            if round_ >= 0:
                seconds[name].append(elapsed)
    return Times(seconds)
