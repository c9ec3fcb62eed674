"""Counting values by size: what the server keeps for its metrics."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

MOMENTS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper limits in seconds of the parts of a prediction."""
HOURS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0)
"""Upper limits in seconds of what may take hours, such as a training."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper limits of a number of things."""


class Histogram:
    """How many values there were up to each limit, and their sum."""

    __slots__ = ("counts", "limits", "sum")

    def __init__(self, limits: Sequence[float]) -> None:
        self.limits = limits
        self.counts = [0] * (len(limits) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.limits, value)] += 1
        self.sum += value

    def __add__(self, other: Histogram) -> Histogram:
        both = Histogram(self.limits)
        both.counts = [own + others for own, others in zip(self.counts, other.counts, strict=True)]
        both.sum = self.sum + other.sum
        return both

    def lines(self) -> list[tuple[str, float]]:
        """The counts as Prometheus has them: each includes those before."""
        total = 0
        lines = []
        for limit, count in zip((*map(str, self.limits), "+Inf"), self.counts, strict=True):
            total += count
            lines.append((limit, float(total)))
        return lines

    def quantile(self, share: float) -> float | None:
        """The value below which this share is; None if there are none."""
        found = quantile(self.limits, self.counts, share)
        return None if math.isnan(found) else found


def quantile(limits: Sequence[float], counts: Sequence[int], share: float) -> float:
    """The value below which this share of values is.

    It is nan if there is no value. Between the limits of a bucket it is interpolated, as Prometheus does it.
    """
    wanted = share * sum(counts)
    if not wanted:
        return float("nan")
    below = 0.0
    for number, count in enumerate(counts[:-1]):
        if below + count >= wanted:
            lower = limits[number - 1] if number else 0.0
            return lower + (limits[number] - lower) * (wanted - below) / count
        below += count
    return limits[-1]
