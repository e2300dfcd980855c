"""Known costs as features of the other objectives' processes."""

from __future__ import annotations

import numpy as np
import torch

from orchestrator.arrays import FloatArray
from orchestrator.beliefs import Beliefs
from orchestrator.features import CostFeatures

RNG = np.random.default_rng(0)
# unknown, spread over four decades, even, never varying
OUTCOMES = np.stack([np.full(50, np.nan), 10 ** RNG.uniform(-4, 0, 50), RNG.random(50), np.full(50, 0.5)], axis=1)


def test_costs_that_vary_become_columns_from_0_to_1() -> None:
    features = CostFeatures.over(OUTCOMES)
    assert features.columns == (1, 2)
    columns = features(torch.as_tensor(OUTCOMES)).numpy()
    np.testing.assert_allclose(columns.min(axis=0), 0.0)
    np.testing.assert_allclose(columns.max(axis=0), 1.0)


def test_a_cost_that_spreads_over_decades_is_seen_by_its_logarithm() -> None:
    features = CostFeatures.over(OUTCOMES)
    assert features.is_log.tolist() == [True, False]


def test_costs_beyond_the_scale_lie_at_its_ends() -> None:
    features = CostFeatures.over(OUTCOMES)
    beyond = torch.tensor([[torch.nan, 0.0, 7.0, 0.5]], dtype=torch.float64)
    assert features(beyond).tolist() == [[0.0, 1.0]]


def test_without_known_objectives_there_are_no_features() -> None:
    features = CostFeatures.over(np.full((5, 2), np.nan))
    assert features(torch.full((3, 2), torch.nan, dtype=torch.float64)).shape == (3, 0)


def cost(points: FloatArray) -> FloatArray:
    return np.prod(1.0 + 4.0 * points, axis=1)


def error(points: FloatArray) -> FloatArray:
    return 0.5 + 0.4 * np.sin(2.0 * np.log(cost(points)))


def test_error_that_follows_from_a_known_cost_is_learned_from_fewer_trials() -> None:
    rng = np.random.default_rng(3)
    told, asked = rng.random((20, 6)), rng.random((200, 6))
    outcomes = np.stack([error(told), cost(told)], axis=1)

    def known(points: FloatArray) -> FloatArray:
        return np.stack([np.full(len(points), np.nan), cost(points)], axis=1)

    nothing = np.zeros((0, 6))
    with_cost = Beliefs.learn(told, outcomes, nothing, known, asked).expected(asked)[:, 0]
    without = Beliefs.learn(told, outcomes, nothing, None).expected(asked)[:, 0]
    assert np.abs(with_cost - error(asked)).mean() < 0.3 * np.abs(without - error(asked)).mean()
