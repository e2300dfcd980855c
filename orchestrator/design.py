"""The first trials: a Latin hypercube over the parameters."""

from __future__ import annotations

import numpy as np

from orchestrator.arrays import FloatArray
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace


def latin_hypercube(n: int, n_columns: int, rng: np.random.Generator) -> FloatArray:
    """Points (n, n_columns) in [0, 1), of which every column has exactly one in each of n equal strata."""
    strata = np.stack([rng.permutation(n) for _ in range(n_columns)], axis=1)
    return np.asarray((strata + rng.random((n, n_columns))) / n)


def initial_design(space: SearchSpace, n: int, rng: np.random.Generator) -> FloatArray:
    """The encoded candidates (n, d) to start with.

    Where rounding to the space's values gives a candidate twice, the later one is replaced by a random other, as long
    as there is one.
    """
    points = space.at_quantiles(latin_hypercube(n, len(space.axes), rng))
    for index in range(n):
        tried = Tried(space, points[:index])
        if tried.first_untried(points[index : index + 1]) is None:
            points[index] = tried.draw(1, rng)[0]
    return points
