"""Non-dominated points and hypervolume against numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.errors import ShapeError
from orchestrator.pareto import hypervolume, non_dominated


def test_dominated_rows_are_left_out_and_equal_rows_are_all_kept() -> None:
    points = np.array([[1.0, 3.0], [2.0, 2.0], [2.0, 2.0], [2.0, 3.0], [3.0, 1.0]])
    assert non_dominated(points).tolist() == [True, True, True, False, True]


def test_of_a_single_objective_only_the_least_survives() -> None:
    assert non_dominated(np.array([[2.0], [1.0], [1.0], [3.0]])).tolist() == [False, True, True, False]


def test_an_empty_set_has_no_front_and_no_volume() -> None:
    assert non_dominated(np.zeros((0, 3))).tolist() == []
    assert hypervolume(np.zeros((0, 3)), np.ones(3)) == 0.0


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([[0.0, 0.0]], 1.0),
        ([[0.25, 0.5]], 0.375),
        # Two boxes of 0.5 × 0.75 and 0.75 × 0.25 that overlap in 0.5 × 0.25: 0.375 + 0.1875 - 0.125.
        ([[0.5, 0.25], [0.25, 0.75]], 0.4375),
        ([[0.5, 0.25], [0.25, 0.75], [0.6, 0.8], [0.5, 0.25]], 0.4375),
        # On the reference, or beyond it in one objective: adds nothing.
        ([[0.5, 1.0], [-9.0, 1.5]], 0.0),
    ],
)
def test_the_hypervolume_in_two_objectives(points: list[list[float]], expected: float) -> None:
    assert hypervolume(np.array(points), np.ones(2)) == pytest.approx(expected)


def test_the_hypervolume_in_four_objectives() -> None:
    # 0.5⁴ twice, overlapping in 0.25 · 0.5² · 0.25: 2/16 - 1/64.
    points = np.array([[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.5, 0.75]])
    assert hypervolume(points, np.ones(4)) == pytest.approx(0.5**4 + 0.75 * 0.25 * 0.25 - 0.5**3 * 0.25)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        non_dominated(np.array([[np.nan, 1.0]]))
    with pytest.raises(ValueError, match="NaN"):
        hypervolume(np.array([[np.nan, 1.0]]), np.ones(2))


def test_widths_that_differ_are_refused() -> None:
    with pytest.raises(ShapeError, match="points has shape"):
        hypervolume(np.zeros((2, 3)), np.ones(2))
