"""The logarithm of the noisy expected hypervolume improvement, by BoTorch.

Source: Daulton, Balandat, Bakshy, NeurIPS 2021 (qNEHVI); Ament et al., NeurIPS 2023 (its logarithm).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
from torch import Tensor

from orchestrator.arrays import FloatArray
from orchestrator.proposers.bo import (
    Ascent,
    best_untried,
    careful,
    model_of,
    pending_tensor,
    sampler_of,
    towards_feasible,
)
from orchestrator.proposers.front import reference_point, unexplained_margins
from orchestrator.proposers.protocol import History
from orchestrator.proposers.qparego import QparegoProposer
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class QlognehviProposer:
    """qLogNEHVI with straight-through gradients over discrete parameters and candidates around the front.

    ``draws`` posterior draws; each has a front and a partitioning of its own, which is where the time goes.
    """

    space: SearchSpace
    pool: int = 256
    restarts: int = 4
    draws: int = 16

    def __post_init__(self) -> None:
        Ascent(pool=self.pool, restarts=self.restarts)
        if self.draws < 1:
            raise ValueError(f"draws is {self.draws}, allowed are whole numbers from 1")

    def propose(self, history: History, pending: FloatArray, rng: np.random.Generator) -> FloatArray:
        """See :class:`orchestrator.proposers.protocol.Proposer`."""
        if not len(history):
            return np.asarray(Tried(self.space, pending).draw(1, rng)[0])
        if history.outcomes.shape[1] == 1:
            # The hypervolume of one objective is its improvement.
            single = QparegoProposer(space=self.space, pool=self.pool, restarts=self.restarts, draws=self.draws)
            return single.propose(history, pending, rng)
        with careful(rng):
            ascent = Ascent(pool=self.pool, restarts=self.restarts)
            if not history.feasible.any():
                return towards_feasible(self.space, history, pending, rng, ascent)
            acquisition = self._acquisition(history, pending, rng)
            return best_untried(acquisition, self.space, history, pending, rng, ascent)

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
            model=model_of(history.points, columns),
            ref_point=torch.as_tensor(-reference_point(history, feasible)),
            X_baseline=_baseline(history),
            sampler=sampler_of(self.draws, rng),
            objective=IdentityMCMultiOutputObjective(outcomes=list(range(n_objectives))),
            constraints=constraints,
            X_pending=pending_tensor(pending),
            prune_baseline=True,
        )


def _baseline(history: History) -> Tensor:
    return torch.as_tensor(history.points[history.feasible])
