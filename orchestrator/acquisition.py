"""Rewards from the posterior: how much evaluating a point is worth.

Published form: the expected improvement of the objectives' augmented Chebyshev scalarisation, by Monte Carlo with the
reparameterisation trick. The base draws are fixed, so the reward is a deterministic, smooth function of the point and
two rollouts differ by their points alone.

Any reward is a :class:`Reward`; the search that maximises it knows nothing else about it.

Shapes: q points, d columns, m objectives, s posterior draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from orchestrator.arrays import FloatArray, check_shape
from orchestrator.surrogate import Surrogate

# Weight of the sum beside the maximum, as in ParEGO (Knowles, IEEE TEVC 10(1), 2006); it breaks ties between points
# with the same maximum in favour of the one that is better elsewhere, so weakly dominated points never win.
AUGMENTATION = 0.05


class Reward(Protocol):
    """Scores points (q, d) of the unit cube; larger is better. Returns (q,)."""

    def __call__(self, points: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Chebyshev:
    """Augmented Chebyshev scalarisation, minimised: max_j(λ_j z_j) + ρ Σ_j λ_j z_j of z = (outcome − ideal) / span.

    The fields λ, ``ideal`` and ``span`` are (m,).
    """

    weights: Tensor
    ideal: Tensor
    span: Tensor

    @staticmethod
    def over(outcomes: FloatArray, weights: FloatArray) -> Chebyshev:
        """Scale by the range of ``outcomes`` (n, m), n ≥ 1; an objective that never varied has span 1."""
        check_shape("outcomes", outcomes, None, None)
        check_shape("weights", weights, outcomes.shape[1])
        ideal, worst = outcomes.min(axis=0), outcomes.max(axis=0)
        span = np.where(worst > ideal, worst - ideal, 1.0)
        return Chebyshev(weights=torch.as_tensor(weights), ideal=torch.as_tensor(ideal), span=torch.as_tensor(span))

    def __call__(self, outcomes: Tensor) -> Tensor:
        """(…, m) → (…)"""
        terms = self.weights * (outcomes - self.ideal) / self.span
        return terms.amax(dim=-1) + AUGMENTATION * terms.sum(dim=-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedImprovement:
    """How far a draw of the scalarised outcome falls below ``best``, on average over ``draws`` (s, m)."""

    surrogate: Surrogate
    scalarisation: Chebyshev
    best: float
    draws: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        mean, deviation = self.surrogate.posterior(points)
        outcomes = mean + deviation * self.draws[:, None, :]  # (s, q, m)
        return (self.best - self.scalarisation(outcomes)).clamp_min(0.0).mean(dim=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeasibilityWeighted:
    """A reward times the probability that the one output of ``margin`` is at most 0."""

    reward: Reward
    margin: Surrogate

    def __call__(self, points: Tensor) -> Tensor:
        mean, deviation = self.margin.posterior(points)
        feasible: Tensor = torch.special.ndtr(-mean[:, 0] / deviation[:, 0])
        return self.reward(points) * feasible


def draw_weights(n_objectives: int, rng: np.random.Generator) -> FloatArray:
    """Chebyshev weights (m,), uniform on the simplex."""
    return rng.dirichlet(np.ones(n_objectives))


def base_draws(n_draws: int, n_objectives: int, rng: np.random.Generator) -> Tensor:
    """Standard normal draws (s, m) from a scrambled Sobol sequence: the same error as many more independent draws."""
    engine = torch.quasirandom.SobolEngine(  # type: ignore[no-untyped-call]  # torch ships it without types
        n_objectives, scramble=True, seed=int(rng.integers(2**31))
    )
    uniform: Tensor = engine.draw(n_draws, dtype=torch.float64).clamp(1e-9, 1.0 - 1e-9)
    draws: Tensor = torch.special.ndtri(uniform)
    return draws
