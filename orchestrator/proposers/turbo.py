"""TuRBO-1: one trust region, Thompson sampling, for several objectives by a random scalarisation.

Source: Eriksson, Pearce, Gardner, Turner, Poloczek, NeurIPS 2019; constraints as in Eriksson, Poloczek, AISTATS 2021
(SCBO). The method is for one objective. As the ARS-MOBOpt publication compares it on several, each proposal here
minimises an augmented Chebyshev scalarisation with fresh weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from orchestrator.acquisition import Chebyshev, draw_weights
from orchestrator.arrays import FloatArray
from orchestrator.proposers.bo import careful, model_of
from orchestrator.proposers.protocol import History
from orchestrator.proposers.trust_region import TrustRegion, perturbed, replayed, sides_of
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class TurboProposer:
    """``initial`` trials are the design, and random ones again after a restart; ``candidates`` are compared."""

    space: SearchSpace
    initial: int = 8
    candidates: int = 1000

    def __post_init__(self) -> None:
        for name in ("initial", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed are whole numbers from 1")

    def propose(self, history: History, pending: FloatArray, rng: np.random.Generator) -> FloatArray:
        """See :class:`orchestrator.proposers.protocol.Proposer`."""
        region = replayed(history, design=self.initial, n_parameters=len(self.space.axes))
        tried = Tried(self.space, history.points, pending)
        recent = recent_part(history, region)
        if len(recent) < (self.initial if region.first else 1):
            return np.asarray(tried.draw(1, rng)[0])
        with careful(rng):
            values, margins = _scalarised(recent, rng)
            points = recent.points
            centre = points[_best(values, recent)]
            columns = np.column_stack([values, margins]) if margins is not None else values[:, None]
            model = model_of(points, -columns)
            lengths = model.models[0].covar_module.lengthscale.detach().numpy().reshape(-1)
            found = perturbed(self.space, centre, sides_of(region.side, lengths), self.candidates, rng)
            with torch.no_grad():
                draws = -model.posterior(torch.as_tensor(found)).sample(torch.Size([1]))[0].numpy()
        order = _best_first(draws)
        proposal = tried.first_untried(found[order])
        return proposal if proposal is not None else np.asarray(tried.draw(1, rng)[0])


def recent_part(history: History, region: TrustRegion) -> History:
    """The trials of this region."""
    part = slice(region.first, None)
    return History(
        points=history.points[part],
        outcomes=history.outcomes[part],
        feasible=history.feasible[part],
        margins=history.margins[part],
        unbounded=history.unbounded,
    )


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
