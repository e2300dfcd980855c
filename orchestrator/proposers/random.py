"""Random search, by Optuna's sampler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from optuna.samplers import RandomSampler

from orchestrator.arrays import FloatArray
from orchestrator.proposers.protocol import History
from orchestrator.proposers.replay import ask_untried, replay
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomProposer:
    """Uniform over the parameters, log-uniform on a log scale."""

    space: SearchSpace

    def propose(self, history: History, pending: FloatArray, rng: np.random.Generator) -> FloatArray:
        """See :class:`orchestrator.proposers.protocol.Proposer`."""
        sampler = RandomSampler(seed=int(rng.integers(2**32)))
        nothing = History.empty(self.space.dim, max(history.outcomes.shape[1], 1))
        study = replay(self.space, nothing, sampler)
        return ask_untried(study, self.space, Tried(self.space, history.points, pending), rng)
