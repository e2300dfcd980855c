"""Expected hypervolume improvement, and what is believed of the objectives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from orchestrator.arrays import FloatArray
from orchestrator.beliefs import Beliefs
from orchestrator.boxes import free_boxes
from orchestrator.improvement import LogChebyshevImprovement, LogHypervolumeImprovement
from orchestrator.pareto import hypervolume

NOTHING_PENDING = np.zeros((0, 2))
REFERENCE = np.ones(3)


def outcomes_at(points: FloatArray) -> FloatArray:
    """Three positive outcomes; the last grows by factors."""
    x, y = points.T
    return np.stack([0.2 + (x - 0.3) ** 2, 0.9 - 0.7 * x * y, np.exp(5 * (x - y) - 2)], axis=1)


def told(n: int = 25) -> tuple[FloatArray, FloatArray]:
    points = np.random.default_rng(0).random((n, 2))
    return points, outcomes_at(points)


def last_two_known(points: FloatArray) -> FloatArray:
    values = outcomes_at(points)
    values[:, 0] = np.nan
    return values


def reward_of(beliefs: Beliefs, front: FloatArray) -> LogHypervolumeImprovement:
    return LogHypervolumeImprovement.over(free_boxes(front, REFERENCE), beliefs, REFERENCE)


@pytest.mark.parametrize("known", [None, last_two_known], ids=["all modelled", "two known"])
def test_the_reward_is_the_mean_hypervolume_gained_over_posterior_draws(known: object) -> None:
    points, outcomes = told()
    beliefs = Beliefs.learn(points, outcomes, NOTHING_PENDING, known)  # type: ignore[arg-type]  # either kind
    assert bool(beliefs.is_log[2]) is (known is None)
    queries = np.random.default_rng(1).random((200, 2))
    front = outcomes[(outcomes < 1).all(axis=1)][:4] + 0.1
    rewards = reward_of(beliefs, front)(torch.as_tensor(queries)).exp().numpy()
    best = int(rewards.argmax())
    mean, deviation = (part[best] for part in beliefs.posterior(torch.as_tensor(queries)))
    normal = torch.randn(3000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = mean + deviation * normal
    draws = torch.where(beliefs.is_log, draws.exp(), draws).numpy()
    gains = [hypervolume(np.vstack([front, draw]), REFERENCE) - hypervolume(front, REFERENCE) for draw in draws]
    assert rewards[best] == pytest.approx(np.mean(gains), rel=0.05)


def test_what_is_computed_has_no_uncertainty_and_is_never_modelled() -> None:
    points, outcomes = told()
    beliefs = Beliefs.learn(points, outcomes, NOTHING_PENDING, last_two_known)
    assert (beliefs.modelled, beliefs.computed) == ((0,), (1, 2))
    mean, deviation = beliefs.posterior(torch.tensor([[0.5, 0.25]], dtype=torch.float64))
    assert mean[0, 1:].tolist() == outcomes_at(np.array([[0.5, 0.25]]))[0, 1:].tolist()
    assert deviation[0, 1:].tolist() == [0.0, 0.0]
    assert deviation[0, 0] > 0


def test_an_objective_known_of_some_candidates_only_is_refused() -> None:
    points, outcomes = told()

    def sometimes(points: FloatArray) -> FloatArray:
        return np.where(np.arange(len(points))[:, None] % 2 == 0, outcomes_at(points), np.nan)

    with pytest.raises(ValueError, match="known of every candidate"):
        Beliefs.learn(points, outcomes, NOTHING_PENDING, sometimes)


def test_an_outcome_beyond_its_limit_for_certain_is_worth_less_the_further_it_is() -> None:
    points, outcomes = told()
    beliefs = Beliefs.learn(points, outcomes, NOTHING_PENDING, last_two_known)
    # The third outcome, known, is exp(5 (x - y) - 2): above 1 where x - y is above 0.4.
    rewards = reward_of(beliefs, outcomes[:0])(torch.tensor([[0.5, 0.2], [0.7, 0.2], [0.9, 0.2]], dtype=torch.float64))
    assert math.isfinite(rewards[2])
    assert rewards[0] > rewards[1] > rewards[2]


def test_an_objective_without_any_outcome_does_not_count() -> None:
    points, outcomes = told()
    outcomes[:, 0] = np.nan
    beliefs = Beliefs.learn(points, outcomes, NOTHING_PENDING, None)
    assert beliefs.believed == (1, 2)
    assert torch.isfinite(reward_of(beliefs, outcomes[:0])(torch.as_tensor(points))).all()


def test_hopeless_points_still_differ_in_their_reward() -> None:
    beliefs = Beliefs.learn(*told(8), NOTHING_PENDING, None)
    queries = torch.as_tensor(np.random.default_rng(1).random((50, 2)))
    rewards = reward_of(beliefs, np.array([[0.1, 0.1, 0.0005]]))(queries)
    assert torch.isfinite(rewards).all()
    assert rewards.max() < -10
    assert len(rewards.unique()) > 10


def test_many_trials_are_all_conditioned_on_though_only_some_are_fitted() -> None:
    points, outcomes = told(450)
    beliefs = Beliefs.learn(points, outcomes, NOTHING_PENDING, None)
    assert beliefs.surrogate is not None
    assert len(beliefs.surrogate.observations.points) == 450
    np.testing.assert_allclose(beliefs.expected(points), outcomes, atol=0.01, rtol=0.05)


def test_less_optimism_counts_less_of_the_deviations() -> None:
    points, outcomes = told()
    beliefs = Beliefs.learn(points, outcomes, NOTHING_PENDING, None)
    front = outcomes[(outcomes < 1).all(axis=1)]
    boxes = free_boxes(front, REFERENCE)
    queries = torch.as_tensor(np.random.default_rng(1).random((50, 2)))
    # Without any deviation the improvement is that of what is expected.
    certain = LogHypervolumeImprovement.over(boxes, beliefs, REFERENCE, optimism=0.0)(queries).exp().numpy()
    expected = beliefs.expected(queries.numpy())
    gains = [hypervolume(np.vstack([front, row]), REFERENCE) - hypervolume(front, REFERENCE) for row in expected]
    np.testing.assert_allclose(certain, gains, atol=1e-6)


def test_known_outcomes_take_the_place_of_what_was_believed() -> None:
    points, outcomes = told()
    reward = reward_of(Beliefs.learn(points, outcomes, NOTHING_PENDING, None), outcomes[:5])
    queries = np.random.default_rng(1).random((6, 2))
    known = outcomes_at(queries)
    gains = [
        hypervolume(np.vstack([outcomes[:5], row]), REFERENCE) - hypervolume(outcomes[:5], REFERENCE) for row in known
    ]
    found = reward.knowing(torch.as_tensor(queries), torch.as_tensor(known)).exp().numpy()
    np.testing.assert_allclose(found, gains, atol=1e-6)
    nothing = torch.full((6, 3), torch.nan, dtype=torch.float64)
    assert torch.equal(reward.knowing(torch.as_tensor(queries), nothing), reward(torch.as_tensor(queries)))


def test_a_scalarised_improvement_is_the_mean_over_posterior_draws() -> None:
    points, outcomes = told()
    beliefs = Beliefs.learn(points, outcomes, NOTHING_PENDING, last_two_known)
    reward = LogChebyshevImprovement.over(outcomes, beliefs, np.random.default_rng(0))
    queries = torch.as_tensor(np.random.default_rng(1).random((100, 2)))
    rewards = reward(queries).exp()
    best = int(rewards.argmax())
    mean, deviation = (part[best] for part in beliefs.posterior(queries))
    normal = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gains = (reward.best - reward.scalarisation(mean + deviation * normal)).clamp_min(0.0)
    assert float(rewards[best]) == pytest.approx(float(gains.mean()), rel=0.1)
