"""The logarithm of the noisy expected hypervolume improvement, by BoTorch.

Source: Daulton, Balandat, Bakshy, NeurIPS 2021 (qNEHVI); Ament et al., NeurIPS 2023 (its logarithm).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
from torch import Tensor

from orchestrator.arrays import FloatArray
from orchestrator.proposers.bo import Ascent, pending_tensor, sampler_of
from orchestrator.proposers.front import reference_point, unexplained_margins
from orchestrator.proposers.models import model_of
from orchestrator.proposers.protocol import History
from orchestrator.proposers.qparego import QparegoProposer
from orchestrator.space import SearchSpace

DEFAULT_DRAWS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class QlognehviProposer:
    """qLogNEHVI with straight-through gradients over discrete parameters and candidates around the front.

    Each of the posterior draws has a front and a partitioning of its own, which is where the time goes.
    """

    space: SearchSpace
    ascent: Ascent = field(default_factory=lambda: Ascent(draws=DEFAULT_DRAWS))

    def propose(self, history: History, pending: FloatArray, rng: np.random.Generator) -> FloatArray:
        """See :class:`orchestrator.proposers.protocol.Proposer`."""
        if history.outcomes.shape[1] == 1:
            # The hypervolume of one objective is its improvement.
            return QparegoProposer(space=self.space, ascent=self.ascent).propose(history, pending, rng)
        return self.ascent.propose(self.space, history, pending, rng, lambda: self._acquisition(history, pending, rng))

    def _acquisition(
        self, history: History, pending: FloatArray, rng: np.random.Generator
    ) -> qLogNoisyExpectedHypervolumeImprovement:
        n_objectives = history.outcomes.shape[1]
        columns, constraints = -history.outcomes, None
        margins = unexplained_margins(history)
        if margins is not None:
            # BoTorch's constraints hold where they are at most 0.
            columns = np.column_stack([columns, np.clip(margins, -1.0, 1.0)])
            constraints = [lambda outcomes: outcomes[..., n_objectives]]
        feasible = history.outcomes[history.feasible]
        return qLogNoisyExpectedHypervolumeImprovement(
            model=model_of(history.points, columns, is_bent=bool(self.ascent.bent)),
            ref_point=torch.as_tensor(-reference_point(history, feasible)),
            X_baseline=_baseline(history),
            sampler=sampler_of(self.ascent.draws, rng),
            objective=IdentityMCMultiOutputObjective(outcomes=list(range(n_objectives))),
            constraints=constraints,
            X_pending=pending_tensor(pending),
            prune_baseline=True,
        )


def _baseline(history: History) -> Tensor:
    return torch.as_tensor(history.points[history.feasible])
