"""The region where a further point improves a front."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.arrays import FloatArray
from orchestrator.boxes import Boxes, free_boxes
from orchestrator.pareto import hypervolume

# Few levels, so that ties and repeated points are frequent.
levels = st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2])


def volume(boxes: Boxes) -> float:
    return float(np.prod(boxes.upper.clip(0, 1) - boxes.lower.clip(0, 1), axis=1).sum())


@settings(deadline=None)
@given(data=st.data(), m=st.integers(1, 5), n=st.integers(0, 8))
def test_the_free_and_the_dominated_region_fill_the_cube_without_overlap(data: st.DataObject, m: int, n: int) -> None:
    front = np.array(data.draw(st.lists(levels, min_size=n * m, max_size=n * m))).reshape(n, m)
    boxes = free_boxes(front, np.ones(m))
    assert volume(boxes) + hypervolume(front, np.ones(m)) == pytest.approx(1.0)
    middles = (boxes.lower.clip(0, 1) + boxes.upper.clip(0, 1)) / 2
    inside = (middles[:, None, :] > boxes.lower) & (middles[:, None, :] < boxes.upper)
    real = np.all(boxes.upper.clip(0, 1) > boxes.lower.clip(0, 1), axis=1)
    assert (inside.all(axis=2).sum(axis=1)[real] == 1).all()


def test_no_front_leaves_everything_below_the_reference_free() -> None:
    boxes = free_boxes(np.zeros((0, 3)), np.array([1.0, 2.0, 3.0]))
    assert boxes.lower.tolist() == [[-np.inf] * 3]
    assert boxes.upper.tolist() == [[1.0, 2.0, 3.0]]


def test_a_large_front_in_many_objectives_is_thinned_to_its_best_spread_points() -> None:
    front: FloatArray = np.random.default_rng(0).dirichlet(np.ones(6), 80) ** 0.7
    boxes = free_boxes(front, np.ones(6))
    assert len(boxes) < 5000
    assert 1.0 - 1e-9 < volume(boxes) + hypervolume(front, np.ones(6)) < 1.25
