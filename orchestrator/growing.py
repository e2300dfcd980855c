"""The front and the hypervolume of a study as its trials come in, at the price of the new point alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from orchestrator.arrays import FloatArray
from orchestrator.pareto import hypervolume, non_dominated

_AT_ONCE = 200


@dataclass(kw_only=True)
class GrowingFront:
    """The non-dominated of all points so far; everything is minimised.

    What a new point adds is the box from it to the reference less what the others have of that box: of a front of
    hundreds only a few reach into it.

    Shapes:
        reference: (m,).
    """

    reference: FloatArray
    hypervolume: float = 0.0
    _points: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self._points = np.empty((0, len(self.reference)))

    @property
    def size(self) -> int:
        """How many there are; equal ones each count."""
        return len(self._points)

    def add(self, point: FloatArray) -> None:
        """Take in one point (m,)."""
        others = self._points
        no_worse = np.all(others <= point, axis=1)
        if bool(np.any(no_worse & np.any(others < point, axis=1))):
            return
        if not bool(np.any(no_worse)):  # not equal to one that is there
            self.hypervolume += self._gain(point)
        still = ~(np.all(point <= others, axis=1) & np.any(point < others, axis=1))
        self._points = np.vstack([others[still], point])

    def add_all(self, points: FloatArray) -> list[float]:
        """Take in points (n, m) in their order; returns the hypervolume after each.

        Most points of a long search are dominated by what was there long before: they are sorted out many at once.
        """
        after = []
        for start in range(0, len(points), _AT_ONCE):
            part = points[start : start + _AT_ONCE]
            known = self._points[None, :, :]
            no_worse = np.all(known <= part[:, None, :], axis=2)
            is_open = ~np.any(no_worse & np.any(known < part[:, None, :], axis=2), axis=1)
            for point, may_count in zip(part, is_open, strict=True):
                if may_count:
                    self.add(point)
                after.append(self.hypervolume)
        return after

    def _gain(self, point: FloatArray) -> float:
        if not bool(np.all(point < self.reference)):
            return 0.0
        box = float(np.prod(self.reference - point))
        shared = np.maximum(self._points, point)
        shared = shared[np.all(shared < self.reference, axis=1)]
        if not len(shared):
            return box
        return max(0.0, box - hypervolume(shared[non_dominated(shared)], self.reference))
