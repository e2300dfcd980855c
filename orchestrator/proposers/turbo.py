"""TuRBO-1: one trust region, Thompson sampling, for several objectives by a random scalarisation.

Source: Eriksson, Pearce, Gardner, Turner, Poloczek, NeurIPS 2019; constraints as in Eriksson, Poloczek, AISTATS 2021
(SCBO). The method is for one objective. As the ARS-MOBOpt publication compares it on several, each proposal here
minimises an augmented Chebyshev scalarisation with fresh weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from orchestrator.acquisition import Chebyshev, draw_weights
from orchestrator.arrays import FloatArray
from orchestrator.proposers.models import length_scales, model_of
from orchestrator.proposers.protocol import History
from orchestrator.proposers.trust_region import RegionSearch, perturbed, sides_of
from orchestrator.space import SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class TurboProposer:
    """Candidates of the region by one draw of the scalarised posterior."""

    space: SearchSpace
    region: RegionSearch = field(default_factory=RegionSearch)

    def propose(self, history: History, pending: FloatArray, rng: np.random.Generator) -> FloatArray:
        """See :class:`orchestrator.proposers.protocol.Proposer`."""
        return self.region.propose(
            self.space, history, pending, rng, lambda recent, side: self._ranked(recent, side, rng)
        )

    def _ranked(self, recent: History, side: float, rng: np.random.Generator) -> FloatArray:
        values, margins = _scalarised(recent, rng)
        centre = recent.points[_best(values, recent)]
        columns = np.column_stack([values, margins]) if margins is not None else values[:, None]
        model = model_of(recent.points, -columns, is_bent=bool(self.region.bent))
        sides = sides_of(side, length_scales(model)[0])
        found = perturbed(self.space, centre, sides, self.region.candidates, rng)
        with torch.no_grad():
            draws = -model.posterior(torch.as_tensor(found)).sample(torch.Size([1]))[0].numpy()
        return np.asarray(found[_best_first(draws)])


def _scalarised(history: History, rng: np.random.Generator) -> tuple[FloatArray, FloatArray | None]:
    """The value (n,) to minimise, NaN where unknown, and the margins (n,) once one is above 0."""
    margins = np.clip(history.margins, -1.0, 1.0)
    if not history.feasible.any():
        return margins, None
    weights = draw_weights(history.outcomes.shape[1], rng)
    scalarisation = Chebyshev.over(history.outcomes[history.feasible], weights)
    values = scalarisation(torch.as_tensor(history.outcomes)).numpy()
    return values, None if history.feasible.all() else margins


def _best(values: FloatArray, history: History) -> int:
    if not history.feasible.any():
        return int(values.argmin())
    return int(np.where(history.feasible, values, np.inf).argmin())


def _best_first(draws: FloatArray) -> np.ndarray:
    """Feasible draws by their value, then the others by their margin; ``draws`` are (q, 1 or 2)."""
    if draws.shape[1] == 1:
        return np.argsort(draws[:, 0], kind="stable")
    excess = draws[:, 1].clip(min=0.0)
    return np.lexsort([np.where(excess > 0, 0.0, draws[:, 0]), excess])
