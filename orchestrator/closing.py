"""Ending a study before its budget is spent: what is under way gets no result."""

from __future__ import annotations

from optuna.trial import TrialState

from orchestrator.quantities import counted
from orchestrator.records import Ending, Event, Fault, FaultKind, Outcome
from orchestrator.study import Study

STOPPED_REASON = "study_stopped"


def given_up(n_open: int) -> str:
    """What became of the trials under way, to go on a sentence with; empty where there were none."""
    return f", {counted(n_open, 'trial')} under way {'was' if n_open == 1 else 'were'} given up" if n_open else ""


def close_open_trials(study: Study, at: str) -> int:
    """Close all trials under way as faults of the reason ``study_stopped``, and their attempts; returns how many.

    The caller must be the study's sole runner. May be called again after it was interrupted.
    """
    fault = Fault(kind=FaultKind.TRANSIENT, reason=STOPPED_REASON, detail="the study was stopped for good")
    for attempt in study.ledger.attempts():
        if attempt.is_open:
            study.ledger.record_fault(attempt.trial, attempt.stage, attempt.attempt, fault, at)
    still_open = [row.trial for row in study.ledger.candidates() if row.outcome is None]
    for trial in study.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.optuna.tell(trial.number, state=TrialState.FAIL)
    for trial_number in still_open:
        fields = {"trial": trial_number, "ending": Ending.FAULT.value, "values": {}, "reason": STOPPED_REASON}
        ended = Event(name="trial_ended", fields=fields)
        study.ledger.end(trial_number, Outcome(ending=Ending.FAULT, fault=fault), at, [ended])
    text = f"stopped for good{given_up(len(still_open))}"
    study.ledger.record_events([Event(name="study_stopped", fields={"text": text})], at)
    return len(still_open)
