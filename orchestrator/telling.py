"""How trials are told, in words that Optuna's samplers and ours read.

One rule, kept by :func:`tell_outcome` and read by :class:`~orchestrator.sampler.ProposerSampler`:

complete
    ``TrialState.COMPLETE`` with the objectives in natural units. Beside them one Optuna constraint per objective with
    a limit, named like it: amount / limit − 1. The trial is feasible when all constraints are at most 0; one that
    breaks a limit keeps its values, and the surrogate learns from them.
infeasible
    ``TrialState.PRUNED``, without values, because some do not exist (it was never trained). The user attribute
    ``edgefront:violations`` (:data:`VIOLATIONS_ATTR`) holds one positive number per broken limit, how far beyond it as
    a share of the limit; the same number is an Optuna constraint named after the quantity. Objectives that are known
    nevertheless are constraints as well, so the surrogate learns what can be learnt.
stopped early
    ``TrialState.PRUNED``, without values or constraints: it was given up before it had a result, so it is none. The
    user attribute ``edgefront:stopped`` (:data:`STOPPED_ATTR`) holds the reason. Samplers that look at values pass
    it over; ours treats its candidate like a pending one, so that neither it nor its neighbours come again at once.
fault
    ``TrialState.FAIL``. Ignored entirely: the lab failed, not the candidate.
running
    Pending: conditioned on, and not proposed again.

Margins are shares of the limit that held when the trial was told. Where limits were tightened since, the study's
attribute ``edgefront:first_limits`` (:data:`FIRST_LIMITS_ATTR`) holds those it began with, and each infeasible trial
told after the first change the attribute ``edgefront:limits`` (:data:`LIMITS_ATTR`) with those it was told under.
"""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import Trial, TrialState

from orchestrator.objectives import Objectives, relative_excess
from orchestrator.records import Ending, Outcome

VIOLATIONS_ATTR = "edgefront:violations"
STOPPED_ATTR = "edgefront:stopped"
FIRST_LIMITS_ATTR = "edgefront:first_limits"
LIMITS_ATTR = "edgefront:limits"


def tell_outcome(
    study: optuna.Study, number: int, outcome: Outcome, objectives: Objectives, *, asked: Trial | None = None
) -> None:
    """Tell Optuna how a running trial ended, by the rule above; telling it again after a crash half-way does no harm.

    ``asked`` is the trial as it was asked for, where this process did; looking it up reads all running trials.

    Raises:
        ValueError: a complete outcome lacks an objective, an infeasible one has no violation, or the trial has ended.
    """
    if outcome.ending is Ending.FAULT:
        study.tell(number, state=TrialState.FAIL)
        return
    trial = asked if asked is not None else _running(study, number)
    if outcome.ending is Ending.STOPPED:
        trial.set_user_attr(STOPPED_ATTR, outcome.reason)
        study.tell(number, state=TrialState.PRUNED)
        return
    if outcome.ending is Ending.COMPLETE:
        vector = objectives.vector(outcome.values).tolist()
        _constrain(trial, objectives.margins(outcome.values), has_none=asked is not None)
        study.tell(number, vector, state=TrialState.COMPLETE)
        return
    if not outcome.violations:
        raise ValueError(f"trial {number} is infeasible without a violation")
    excesses: dict[str, float] = {}
    for violation in outcome.violations:  # of several boards that break the same limit, the worst
        excesses[violation.quantity] = max(excesses.get(violation.quantity, 0.0), relative_excess(violation))
    _constrain(trial, objectives.margins(outcome.values) | excesses, has_none=asked is not None)
    if FIRST_LIMITS_ATTR in study.user_attrs:
        trial.set_user_attr(LIMITS_ATTR, dict(zip(objectives.names, objectives.limits, strict=True)))
    trial.set_user_attr(VIOLATIONS_ATTR, list(excesses.values()))
    study.tell(number, state=TrialState.PRUNED)


def _constrain(trial: Trial, constraints: Mapping[str, float], *, has_none: bool) -> None:
    """Set each constraint that is not set yet. Optuna itself reads the whole trial before each; of a trial that has
    none, because it has never been told, that is left out."""
    if has_none:
        for name, value in constraints.items():
            trial.storage.set_trial_system_attr(trial._trial_id, f"{_CONSTRAINTS_KEY}:{name}", float(value))
        return
    known = trial.constraints
    for name, value in constraints.items():
        if name not in known:
            trial.set_constraint(name, value)


def _running(study: optuna.Study, number: int) -> Trial:
    matching = [item for item in study.get_trials(deepcopy=False) if item.number == number]
    if not matching or matching[0].state != TrialState.RUNNING:
        raise ValueError(f"trial {number} is not running, so it cannot be told")
    # Only a live trial takes constraints, and after a restart its id is the way back to it.
    return Trial(study, matching[0]._trial_id)
