"""A front that grows point by point is the front of all points, and so is its hypervolume."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.growing import GrowingFront
from orchestrator.pareto import hypervolume, non_dominated

# Few different values, so that equal coordinates and equal points are common; some are beyond the reference.
coordinates = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 1.25])


@given(st.integers(1, 4).flatmap(lambda m: st.lists(st.tuples(*[coordinates] * m), min_size=1, max_size=30)))
def test_after_each_point_size_and_hypervolume_are_those_of_all_so_far(rows: list[tuple[float, ...]]) -> None:
    points = np.array(rows)
    reference = np.ones(points.shape[1])
    growing = GrowingFront(reference=reference)
    for n_points in range(1, len(points) + 1):
        growing.add(points[n_points - 1])
        so_far = points[:n_points]
        assert growing.hypervolume == pytest.approx(hypervolume(so_far, reference), abs=1e-12)
        assert growing.size == int(non_dominated(so_far).sum())


@pytest.mark.parametrize("n_points", [1, 199, 200, 201, 700])
def test_many_at_once_are_the_same_as_one_by_one(n_points: int) -> None:
    points = np.random.default_rng(0).random((n_points, 3))
    one, many = GrowingFront(reference=np.ones(3)), GrowingFront(reference=np.ones(3))
    expected = []
    for point in points:
        one.add(point)
        expected.append(one.hypervolume)
    assert many.add_all(points) == expected
    assert many.size == one.size
    assert many.hypervolume == pytest.approx(hypervolume(points, np.ones(3)), rel=1e-12)


def test_nothing_dominates_nothing() -> None:
    growing = GrowingFront(reference=np.ones(2))
    assert growing.add_all(np.empty((0, 2))) == []
    assert (growing.size, growing.hypervolume) == (0, 0.0)
