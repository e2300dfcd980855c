"""k-means, for the start points of the local policies."""

from __future__ import annotations

import numpy as np

from orchestrator.arrays import FloatArray, check_shape

_MAX_ROUNDS = 50


def centres(points: FloatArray, n_clusters: int, rng: np.random.Generator) -> FloatArray:
    """Centres of at most ``n_clusters`` clusters of ``points``, found by k-means from a k-means++ start.

    There are fewer when there are fewer different points; then every point is its own centre.

    Shapes:
        points: (n, d), n ≥ 1 → (k, d), 1 ≤ k ≤ n_clusters.
    """
    check_shape("points", points, None, None)
    distinct = np.unique(points, axis=0)
    if len(distinct) <= n_clusters:
        return distinct
    found = _spread_out(points, n_clusters, rng)
    for _ in range(_MAX_ROUNDS):
        nearest = _squared_distances(points, found).argmin(axis=1)
        moved = found.copy()
        for index in np.unique(nearest):  # a centre that lost all its points stays where it was
            moved[index] = points[nearest == index].mean(axis=0)
        if np.array_equal(moved, found):
            break
        found = moved
    return found


def _spread_out(points: FloatArray, n_clusters: int, rng: np.random.Generator) -> FloatArray:
    """k-means++: each further centre is a point drawn in proportion to its squared distance from those chosen."""
    chosen = [points[rng.integers(len(points))]]
    while len(chosen) < n_clusters:
        distance = _squared_distances(points, np.array(chosen)).min(axis=1)
        chosen.append(points[rng.choice(len(points), p=distance / distance.sum())])
    return np.array(chosen)


def _squared_distances(left: FloatArray, right: FloatArray) -> FloatArray:
    return np.asarray(((left[:, None, :] - right[None, :, :]) ** 2).sum(axis=-1))
