"""The reward, against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.acquisition import (
    AUGMENTATION,
    Chebyshev,
    ExpectedImprovement,
    FeasibilityWeighted,
    base_draws,
    draw_weights,
)
from orchestrator.surrogate import Hyperparameters, Observations, Surrogate, fit


def identity_scale(weights: list[float]) -> Chebyshev:
    m = len(weights)
    return Chebyshev(
        weights=torch.tensor(weights, dtype=torch.float64),
        ideal=torch.zeros(m, dtype=torch.float64),
        span=torch.ones(m, dtype=torch.float64),
    )


def closed_form(mean: Tensor, deviation: Tensor, best: float) -> Tensor:
    """Expected improvement of a normal variable, minimised (Jones, Schonlau, Welch 1998, equation 15)."""
    z = (best - mean) / deviation
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return (best - mean) * torch.special.ndtr(z) + deviation * density


@pytest.fixture
def surrogate() -> Surrogate:
    points = np.random.default_rng(0).random((10, 2))
    return fit(points, np.sin(5 * points[:, :1]) + points[:, 1:]).surrogate


def test_chebyshev_is_the_largest_weighted_term_and_a_little_of_their_sum() -> None:
    scalarise = Chebyshev.over(np.array([[0.0, 10.0], [2.0, 30.0]]), np.array([0.25, 0.75]))
    # z = (0.5, 0.5): terms 0.125 and 0.375.
    assert float(scalarise(torch.tensor([1.0, 20.0]))) == pytest.approx(0.375 + AUGMENTATION * 0.5)


def test_chebyshev_prefers_the_better_of_two_points_with_the_same_maximum() -> None:
    scalarise = identity_scale([0.5, 0.5])
    assert scalarise(torch.tensor([1.0, 0.2])) < scalarise(torch.tensor([1.0, 0.9]))


def test_an_objective_that_never_varied_is_not_divided_by_zero() -> None:
    scalarise = Chebyshev.over(np.array([[1.0, 5.0], [2.0, 5.0]]), np.array([0.5, 0.5]))
    assert torch.isfinite(scalarise(torch.tensor([[1.5, 5.0]]))).all()


def test_monte_carlo_expected_improvement_is_the_closed_form_of_one_objective(surrogate: Surrogate) -> None:
    queries = torch.as_tensor(np.random.default_rng(1).random((40, 2)))
    draws = base_draws(4096, 1, np.random.default_rng(2))
    best = 0.1
    reward = ExpectedImprovement(surrogate=surrogate, scalarisation=identity_scale([1.0]), best=best, draws=draws)
    mean, deviation = surrogate.posterior(queries)
    # With one objective of weight 1 the scalarisation multiplies by 1 + ρ.
    stretch = 1.0 + AUGMENTATION
    expected = closed_form(stretch * mean[:, 0], stretch * deviation[:, 0], best)
    assert float(expected.max()) > 0.01
    torch.testing.assert_close(reward(queries), expected, atol=2e-4, rtol=0.01)


def test_the_draws_are_fixed_so_a_point_is_always_worth_the_same(surrogate: Surrogate) -> None:
    draws = base_draws(16, 1, np.random.default_rng(0))
    reward = ExpectedImprovement(surrogate=surrogate, scalarisation=identity_scale([1.0]), best=0.5, draws=draws)
    queries = torch.as_tensor(np.random.default_rng(1).random((5, 2)))
    torch.testing.assert_close(reward(queries)[2:3], reward(queries[2:3]))


def test_base_draws_are_standard_normal_and_follow_the_generator() -> None:
    draws = base_draws(1024, 3, np.random.default_rng(0))
    assert draws.shape == (1024, 3)
    torch.testing.assert_close(draws.mean(dim=0), torch.zeros(3, dtype=torch.float64), atol=0.01, rtol=0)
    torch.testing.assert_close(draws.std(dim=0), torch.ones(3, dtype=torch.float64), atol=0.02, rtol=0)
    assert torch.equal(draws, base_draws(1024, 3, np.random.default_rng(0)))
    assert not torch.equal(draws, base_draws(1024, 3, np.random.default_rng(1)))


def test_weights_lie_on_the_simplex() -> None:
    weights = draw_weights(4, np.random.default_rng(0))
    assert weights.shape == (4,)
    assert np.all(weights >= 0)
    assert weights.sum() == pytest.approx(1.0)


def test_feasibility_weights_by_the_probability_that_the_margin_is_at_most_zero() -> None:
    # One observation far away: at the query the margin is its prior, normal around the mean 0.5 with variance 1.
    observations = Observations(
        points=torch.zeros(1, 1, dtype=torch.float64),
        targets=torch.zeros(1, 1, dtype=torch.float64),
        known=torch.zeros(1, 1, dtype=torch.float64),
        centre=torch.zeros(1, dtype=torch.float64),
        spread=torch.ones(1, dtype=torch.float64),
    )
    prior = Hyperparameters.prior(1, 1)
    hyper = replace(prior, scale=torch.ones_like(prior.scale), mean=prior.mean + 0.5)
    margin = Surrogate.condition(observations, hyper)
    weighted = FeasibilityWeighted(reward=lambda points: torch.full((len(points),), 2.0), margin=margin)
    # Φ(-0.5) = 0.308537...
    assert float(weighted(torch.tensor([[0.5]], dtype=torch.float64))) == pytest.approx(2 * 0.3085375387)
