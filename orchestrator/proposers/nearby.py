"""Candidates near others."""

from __future__ import annotations

import numpy as np

from orchestrator.arrays import FloatArray
from orchestrator.space import SearchSpace

# Of a candidate about three parameters change, and of those that do three in ten are drawn anew.
_CHANGED = 3.0
_REDRAWN = 0.3


def moved(
    space: SearchSpace, points: FloatArray, count: int, rng: np.random.Generator, size: float = 0.15
) -> FloatArray:
    """``count`` candidates near ``points`` (n, d): some parameters moved a little, a few drawn anew."""
    parents = points[rng.integers(len(points), size=count)]
    anew = space.at_quantiles(rng.random((count, len(space.axes))))
    share = min(1.0, _CHANGED / len(space.axes))
    nearby = np.clip(parents + size * rng.standard_normal(parents.shape), 0.0, 1.0)
    change = space.spread(rng.random((count, len(space.axes))) < share)
    redraw = change & space.spread(rng.random((count, len(space.axes))) < _REDRAWN)
    return space.snap(np.where(redraw, anew, np.where(change, nearby, parents)))
