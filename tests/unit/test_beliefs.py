"""Which outcomes are believed in by their logarithms."""

from __future__ import annotations

import numpy as np

from orchestrator.beliefs import Beliefs


def is_log(points: np.ndarray, outcomes: np.ndarray) -> bool:
    return bool(Beliefs.learn(points, outcomes[:, None], np.zeros((0, points.shape[1])), None).is_log)


def test_an_outcome_that_grows_by_factors_is_believed_in_by_its_logarithm() -> None:
    points = np.random.default_rng(0).random((30, 2))
    assert is_log(points, np.exp(6 * points.sum(axis=1)))


def test_zeros_by_rounding_have_no_logarithm() -> None:
    points = np.random.default_rng(0).random((30, 2))
    points[:12, 0] = 1.0
    outcomes = np.cos(np.pi / 2 * points).prod(axis=1)
    assert 0 < outcomes.min() < 1e-15
    assert not is_log(points, outcomes)
