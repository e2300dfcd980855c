"""The tree-structured Parzen estimator, by Optuna's sampler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from optuna.samplers import TPESampler

from orchestrator.arrays import FloatArray
from orchestrator.proposers.protocol import History
from orchestrator.proposers.replay import ask_untried, replay
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class TpeProposer:
    """Optuna's multivariate TPE, from the first trial after the design on; running trials count as bad ones."""

    space: SearchSpace

    def propose(self, history: History, pending: FloatArray, rng: np.random.Generator) -> FloatArray:
        """See :class:`orchestrator.proposers.protocol.Proposer`."""
        sampler = TPESampler(seed=int(rng.integers(2**32)), multivariate=True, n_startup_trials=1)
        study = replay(self.space, history, sampler, pending=pending)
        return ask_untried(study, self.space, Tried(self.space, history.points, pending), rng)
