"""A quasi-random sequence, by Optuna's sampler."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, QMCSampler
from optuna.trial import TrialState, create_trial

from orchestrator.arrays import FloatArray
from orchestrator.proposers.protocol import History
from orchestrator.proposers.replay import replay
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace

# Terms tried after those in use, before a random candidate is taken.
_AHEAD = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class QmcProposer:
    """Optuna's scrambled Sobol sequence: trial after trial its next term. ``scrambling`` numbers the sequence, so that
    studies can take different ones."""

    space: SearchSpace
    scrambling: int = 0

    def __post_init__(self) -> None:
        if self.scrambling < 0:
            raise ValueError(f"scrambling is {self.scrambling}, allowed are whole numbers from 0")

    def propose(self, history: History, pending: FloatArray, rng: np.random.Generator) -> FloatArray:
        """See :class:`orchestrator.proposers.protocol.Proposer`."""
        tried = Tried(self.space, history.points, pending)
        study = replay(self.space, History.empty(self.space.dim, 1), _sampler(self.scrambling))
        distributions = {name: item for name, item in self.space.distributions().items() if not item.single()}
        _skip(study, distributions, len(history) + len(pending))
        for _ in range(_AHEAD):
            point = self.space.encode(_term(study, distributions))
            if tried.first_untried(point[None, :]) is not None:
                return point
        return np.asarray(tried.draw(1, rng)[0])


def _term(study: optuna.Study, distributions: dict[str, BaseDistribution]) -> dict[str, Any]:
    """The sequence's next term; Optuna counts them in the study."""
    trial = create_trial(state=TrialState.RUNNING)
    return study.sampler.sample_relative(study, trial, distributions)


def _skip(study: optuna.Study, distributions: dict[str, BaseDistribution], count: int) -> None:
    """Go on behind the first ``count`` terms, by the count that Optuna keeps in the study."""
    if count:
        _term(study, distributions)
        storage, study_id = study._storage, study._study_id
        (key,) = (key for key in storage.get_study_system_attrs(study_id) if key.startswith("qmc:"))
        storage.set_study_system_attr(study_id, key, count - 1)


def _sampler(scrambling: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return QMCSampler(seed=scrambling, scramble=True, warn_independent_sampling=False)
