"""Statistics of repeated runs, pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """What ``n`` runs of the same program took. The median is one of the readings (the lower middle one for even
    ``n``).
    """

    n: int
    median: float
    minimum: float
    maximum: float

    @property
    def spread(self) -> float:
        """(maximum − minimum) / median; 0.0 for one reading or a median of 0."""
        return (self.maximum - self.minimum) / self.median if self.median else 0.0


def summarise(readings: Sequence[float]) -> Statistics:
    """The statistics of ``readings``.

    Raises:
        ValueError: there are none.
    """
    if not readings:
        raise ValueError("no readings to summarise")
    return Statistics(
        n=len(readings),
        median=statistics.median_low(readings),
        minimum=min(readings),
        maximum=max(readings),
    )


def median_index(readings: Sequence[float]) -> int:
    """Which reading is the median (the first of equal ones).

    Raises:
        ValueError: there are none.
    """
    return list(readings).index(summarise(readings).median)
