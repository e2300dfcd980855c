"""Invariants of fronts and hypervolume."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from orchestrator.pareto import hypervolume, non_dominated

# A coarse grid makes ties and repeated rows frequent.
grids = st.integers(1, 4).flatmap(
    lambda m: st.integers(1, 12).flatmap(lambda n: arrays(np.float64, (n, m), elements=st.integers(0, 8).map(float)))
)


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.all(a <= b) and np.any(a < b))


@given(grids)
def test_a_point_is_marked_exactly_when_no_other_dominates_it(points: np.ndarray) -> None:
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert non_dominated(points).tolist() == expected


@given(grids)
def test_the_hypervolume_never_falls_when_a_point_is_added(points: np.ndarray) -> None:
    reference = np.full(points.shape[1], 8.0)
    volumes = [hypervolume(points[:count], reference) for count in range(len(points) + 1)]
    assert np.all(np.diff(volumes) >= -1e-9)


@given(grids)
def test_dominated_points_add_no_hypervolume(points: np.ndarray) -> None:
    reference = np.full(points.shape[1], 8.0)
    front = points[non_dominated(points)]
    np.testing.assert_allclose(hypervolume(front, reference), hypervolume(points, reference))


@given(grids)
def test_the_hypervolume_equals_the_count_of_dominated_cells_of_the_grid(points: np.ndarray) -> None:
    m = points.shape[1]
    cells = np.stack(np.meshgrid(*[np.arange(8.0)] * m, indexing="ij"), axis=-1).reshape(-1, m)
    covered = np.zeros(len(cells), dtype=bool)
    for point in points:
        covered |= np.all(cells >= point, axis=1)
    np.testing.assert_allclose(hypervolume(points, np.full(m, 8.0)), covered.sum())
