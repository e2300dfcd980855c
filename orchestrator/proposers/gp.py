"""Gaussian processes with expected hypervolume improvement, by Optuna's sampler."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from optuna.samplers import BaseSampler, GPSampler

from orchestrator.arrays import FloatArray
from orchestrator.proposers.protocol import History
from orchestrator.proposers.replay import ask_untried, replay
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace
from orchestrator.threads import one_thread


@dataclass(frozen=True, kw_only=True, slots=True)
class GpProposer:
    """Optuna's GPSampler with its defaults, from the first trial after the design on."""

    space: SearchSpace

    def propose(self, history: History, pending: FloatArray, rng: np.random.Generator) -> FloatArray:
        """See :class:`orchestrator.proposers.protocol.Proposer`."""
        study = replay(self.space, history, _sampler(int(rng.integers(2**32))), pending=pending)
        with one_thread():
            return ask_untried(study, self.space, Tried(self.space, history.points, pending), rng)


def _sampler(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GPSampler(seed=seed, n_startup_trials=1, deterministic_objective=False)
