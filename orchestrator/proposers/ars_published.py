"""ARS-MOBOpt in its published form (Deutel, Kontes, Mutschler, Teich, ACM TELO 5(3), 2025).

What the publication leaves open (pending, infeasible and repeated trials) is settled as ``docs/method.md`` describes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import torch

from orchestrator.acquisition import (
    Chebyshev,
    ExpectedImprovement,
    FeasibilityWeighted,
    Reward,
    base_draws,
    draw_weights,
)
from orchestrator.arrays import FloatArray
from orchestrator.ars import ArsSettings, search
from orchestrator.clustering import centres
from orchestrator.proposers.front import pareto_set
from orchestrator.proposers.protocol import History
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace
from orchestrator.surrogate import Surrogate, fit
from orchestrator.threads import one_thread

_log = logging.getLogger(__name__)

# Random candidates that are scored when the policies found nothing new, or nothing that promises an improvement.
_POOL = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class ArsPublishedProposer:
    """Trains local policies on the surrogate and proposes the best point of their rollouts."""

    space: SearchSpace
    settings: ArsSettings = field(default_factory=ArsSettings)
    draws: int = 64

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws is {self.draws}, allowed are whole numbers from 1")

    def propose(self, history: History, pending: FloatArray, rng: np.random.Generator) -> FloatArray:
        """See :class:`orchestrator.proposers.protocol.Proposer`.

        Without any trial told, an untried point drawn at random.
        """
        tried = Tried(self.space, history.points, pending)
        if not len(history):
            return np.asarray(tried.draw(1, rng)[0])
        with one_thread():
            return self._search(history, pending, tried, rng)

    def _search(self, history: History, pending: FloatArray, tried: Tried, rng: np.random.Generator) -> FloatArray:
        # 2. fit the surrogate on all trials, then condition on the pending ones
        reward = self._snapped(self._reward(history, pending, rng))
        # 3. the Pareto set's clusters are the start points
        starts = _repeated(centres(pareto_set(history), self.settings.policies, rng), self.settings.policies)
        # 4. train a policy from each; 5. roll it out without noise
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        found = search(reward, torch.as_tensor(starts), self.settings, generator)
        best_first = found.rewards.flatten().argsort(descending=True, stable=True)
        points = found.points.flatten(0, 1)[best_first].numpy()
        proposal = tried.first_untried(points) if float(found.rewards.max()) > 0 else None
        return proposal if proposal is not None else _best_of_pool(reward, tried.draw(_POOL, rng))

    def _reward(self, history: History, pending: FloatArray, rng: np.random.Generator) -> Reward:
        if not history.feasible.any():
            # Nothing feasible is known, so there is no front to improve: the margin itself is the one objective.
            margins = np.clip(history.margins, -1.0, 1.0)[:, None]
            return self._improvement(history.points, margins, margins, pending, rng)
        outcomes = history.outcomes
        reward: Reward = self._improvement(history.points, outcomes, outcomes[history.feasible], pending, rng)
        if not history.feasible.all():
            margins = np.clip(history.margins, -1.0, 1.0)[:, None]
            reward = FeasibilityWeighted(reward=reward, margin=_surrogate(history.points, margins, pending))
        return reward

    def _improvement(
        self, points: FloatArray, outcomes: FloatArray, known: FloatArray, pending: FloatArray, rng: np.random.Generator
    ) -> ExpectedImprovement:
        """EI over ``known`` (k, m), the complete rows of ``outcomes`` (n, m) that count as reached."""
        n_objectives = outcomes.shape[1]
        surrogate = _surrogate(points, outcomes, pending)
        scalarisation = Chebyshev.over(known, draw_weights(n_objectives, rng))
        best = float(scalarisation(torch.as_tensor(known)).min())
        draws = base_draws(self.draws, n_objectives, rng)
        return ExpectedImprovement(surrogate=surrogate, scalarisation=scalarisation, best=best, draws=draws)

    def _snapped(self, reward: Reward) -> Reward:
        """The reward of the candidate a point decodes to: in a discrete space nothing between candidates exists."""

        def of_candidates(points: torch.Tensor) -> torch.Tensor:
            return reward(torch.as_tensor(self.space.snap(points.numpy())))

        return of_candidates


def _surrogate(points: FloatArray, outcomes: FloatArray, pending: FloatArray) -> Surrogate:
    fitted = fit(points, outcomes)
    if fitted.warning:
        _log.warning("%s", fitted.warning)
    if not len(pending):
        return fitted.surrogate
    return fitted.surrogate.believing(torch.as_tensor(pending, dtype=torch.float64))


def _repeated(starts: FloatArray, count: int) -> FloatArray:
    """All start points in turn until there are ``count``: policies that share one differ by their directions."""
    return starts[np.arange(count) % len(starts)]


def _best_of_pool(reward: Reward, pool: FloatArray) -> FloatArray:
    """The pool's best candidate; its first, which is a random one, when none promises anything."""
    return np.asarray(pool[int(reward(torch.as_tensor(pool)).argmax())])
