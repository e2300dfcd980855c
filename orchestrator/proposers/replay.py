"""A history as an Optuna study in memory, so that Optuna's own samplers can be asked without keeping state."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial

from orchestrator.arrays import FloatArray
from orchestrator.proposers.protocol import History
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace

# Optuna wants values of every complete trial. Twice the limit is worse than anything feasible, and trials that have it
# are infeasible, so Optuna ranks them by their constraint and never looks at it.
_UNKNOWN = 2.0
_ASKS = 20


def replay(
    space: SearchSpace,
    history: History,
    sampler: BaseSampler,
    *,
    marks: Sequence[Mapping[str, Any]] | None = None,
    pending: FloatArray | None = None,
) -> optuna.Study:
    """A study that holds ``history``; ``marks`` are the system attributes of each trial, ``pending`` (k, d) run."""
    with _quiet():
        study = optuna.create_study(sampler=sampler, directions=["minimize"] * max(history.outcomes.shape[1], 1))
    distributions = space.distributions()
    outcomes = np.where(np.isfinite(history.outcomes), history.outcomes, _UNKNOWN)
    all_marks = marks if marks is not None else [{}] * len(history)
    for point, outcome, margin, mark in zip(history.points, outcomes, history.margins, all_marks, strict=True):
        trial = create_trial(
            params=space.decode(point),
            distributions=distributions,
            values=outcome.tolist(),
            system_attrs=dict(mark),
            constraints={"margin": float(margin)},
        )
        study.add_trial(trial)
    for point in pending if pending is not None else ():
        running = create_trial(
            state=TrialState.RUNNING, params=space.decode(point), distributions=distributions, values=None
        )
        study.add_trial(running)
    return study


def ask_untried(study: optuna.Study, space: SearchSpace, tried: Tried, rng: np.random.Generator) -> FloatArray:
    """The first new candidate of a few asks, else a random one."""
    distributions = space.distributions()
    for _ in range(_ASKS):
        with warnings.catch_warnings():
            # The samplers announce their age; that is the user's business where the user chose them.
            warnings.simplefilter("ignore")
            point = space.encode(study.ask(distributions).params)
        new = tried.first_untried(point[None, :])
        if new is not None:
            return point
    return np.asarray(tried.draw(1, rng)[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna announces every study it creates; nobody asked for this one."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
