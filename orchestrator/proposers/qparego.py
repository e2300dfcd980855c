"""qParEGO, by BoTorch: noisy expected improvement of a random augmented Chebyshev scalarisation.

Source: Knowles, IEEE TEVC 10(1), 2006 (ParEGO); Daulton, Balandat, Bakshy, NeurIPS 2020 (over models of the objectives,
with Monte Carlo).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.acquisition.objective import GenericMCObjective
from torch import Tensor

from orchestrator.acquisition import Chebyshev, draw_weights
from orchestrator.arrays import FloatArray
from orchestrator.proposers.bo import Ascent, pending_tensor, sampler_of
from orchestrator.proposers.front import unexplained_margins
from orchestrator.proposers.models import model_of
from orchestrator.proposers.protocol import History
from orchestrator.space import SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class QparegoProposer:
    """Fresh weights for every proposal; limits are constraints; straight-through gradients over discrete parameters."""

    space: SearchSpace
    ascent: Ascent = field(default_factory=Ascent)

    def propose(self, history: History, pending: FloatArray, rng: np.random.Generator) -> FloatArray:
        """See :class:`orchestrator.proposers.protocol.Proposer`."""
        return self.ascent.propose(self.space, history, pending, rng, lambda: self._acquisition(history, pending, rng))

    def _acquisition(
        self, history: History, pending: FloatArray, rng: np.random.Generator
    ) -> qLogNoisyExpectedImprovement:
        n_objectives = history.outcomes.shape[1]
        columns = -history.outcomes
        margins = unexplained_margins(history)
        if margins is not None:
            columns = np.column_stack([columns, np.clip(margins, -1.0, 1.0)])
        scalarisation = Chebyshev.over(history.outcomes[history.feasible], draw_weights(n_objectives, rng))

        def scalarised(outcomes: Tensor, X: Tensor | None = None) -> Tensor:
            return -scalarisation(-outcomes[..., :n_objectives])

        return qLogNoisyExpectedImprovement(
            model=model_of(history.points, columns, is_bent=bool(self.ascent.bent)),
            X_baseline=torch.as_tensor(history.points[history.feasible]),
            sampler=sampler_of(self.ascent.draws, rng),
            objective=GenericMCObjective(scalarised),
            constraints=_constraints(history, n_columns=columns.shape[1]) or None,
            X_pending=pending_tensor(pending),
            prune_baseline=True,
        )


def _constraints(history: History, *, n_columns: int) -> list[object]:
    """At most 0 where a limit is kept: of each bounded objective once one broke it, and of a modelled margin."""
    with np.errstate(invalid="ignore"):
        broken = history.bounded & (history.outcomes > 1.0).any(axis=0)
    found: list[object] = [lambda outcomes, j=j: -outcomes[..., j] - 1.0 for j in np.flatnonzero(broken).tolist()]
    if n_columns > len(broken):
        found.append(lambda outcomes: outcomes[..., n_columns - 1])
    return found
