"""Which outcomes are believed in by their logarithms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from orchestrator import beliefs, surrogate
from orchestrator.beliefs import Beliefs
from orchestrator.surrogate import Fit


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


def test_what_is_believed_does_not_depend_on_what_was_asked_before() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((21, 3))
    outcomes = np.stack([np.sin(5 * points[:, 0]) + points[:, 1], points.sum(axis=1)], axis=1)
    asked = rng.random((10, 3))

    def believed(n: int) -> np.ndarray:
        return Beliefs.learn(points[:n], outcomes[:n], np.zeros((0, 3)), None).expected(asked)

    beliefs._anchor.cache_clear()
    straight = believed(21)
    beliefs._anchor.cache_clear()
    for n in (15, 16, 17, 20):
        believed(n)
    np.testing.assert_array_equal(believed(21), straight)


def test_a_fit_starts_where_the_last_anchor_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[int, bool]] = []

    def fit(points: np.ndarray, outcomes: np.ndarray, **given: Any) -> Fit:
        started.append((len(points), given.get("start") is not None))
        return surrogate.fit(points, outcomes, **given)

    monkeypatch.setattr(beliefs, "fit", fit)
    beliefs._anchor.cache_clear()
    points = np.random.default_rng(0).random((35, 2))
    for n in (10, 33, 34, 35):
        Beliefs.learn(points[:n], points[:n, :1], np.zeros((0, 2)), None)
    beliefs._anchor.cache_clear()
    assert started == [(10, False), (32, False), (33, True), (34, True), (35, True)]


def test_doubt_falls_with_what_is_known_of_the_space() -> None:
    rng = np.random.default_rng(0)
    asked = torch.as_tensor(rng.random((200, 4)))

    def doubt(n: int) -> float:
        points = rng.random((n, 4))
        outcomes = np.sin(2 * points).sum(axis=1, keepdims=True)
        return Beliefs.learn(points, outcomes, np.zeros((0, 4)), None).doubt(asked)

    few, many = doubt(6), doubt(120)
    assert few > 0.1 > 0.05 > many > 0
