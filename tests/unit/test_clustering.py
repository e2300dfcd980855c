"""k-means for start points."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.clustering import centres


def rows(found: np.ndarray) -> list[list[float]]:
    return sorted(found.tolist())


def test_well_separated_groups_are_found_with_their_means_as_centres() -> None:
    offsets = np.array([[-0.01, 0.0], [0.01, 0.0], [0.0, 0.03]])
    points = np.concatenate([centre + offsets for centre in ([0.1, 0.1], [0.9, 0.2], [0.5, 0.9])])
    found = centres(points, 3, np.random.default_rng(0))
    np.testing.assert_allclose(rows(found), [[0.1, 0.11], [0.5, 0.91], [0.9, 0.21]])


def test_fewer_points_than_clusters_are_their_own_centres() -> None:
    assert rows(centres(np.array([[0.2, 0.3], [0.1, 0.9]]), 10, np.random.default_rng(0))) == [[0.1, 0.9], [0.2, 0.3]]


def test_repeated_points_count_once() -> None:
    points = np.repeat([[0.5, 0.5], [0.1, 0.2]], 20, axis=0)
    assert rows(centres(points, 5, np.random.default_rng(0))) == [[0.1, 0.2], [0.5, 0.5]]


def test_one_cluster_is_the_mean() -> None:
    points = np.random.default_rng(0).random((30, 4))
    np.testing.assert_allclose(centres(points, 1, np.random.default_rng(1)), [points.mean(axis=0)])


@pytest.mark.parametrize("seed", range(5))
def test_there_are_as_many_centres_as_asked_and_every_one_has_points(seed: int) -> None:
    points = np.random.default_rng(seed).random((40, 3))
    found = centres(points, 8, np.random.default_rng(seed))
    nearest = ((points[:, None] - found[None]) ** 2).sum(axis=-1).argmin(axis=1)
    assert set(nearest) == set(range(8))
    # Converged: every centre is the mean of the points nearest to it.
    np.testing.assert_allclose(found, [points[nearest == index].mean(axis=0) for index in range(8)])
