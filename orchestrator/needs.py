"""Which artifacts a study cannot do without, read from its ledger."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.study import FINAL_STAGE, Study


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """``named``: every artifact that the ledger names. ``kept``: those of the fronts and of trials under way, without
    which reports, exports or what is under way would suffer. ``working_since``: when the oldest attempt that is still
    under way was queued (UTC), None without one."""

    named: frozenset[str]
    kept: frozenset[str]
    working_since: str | None = None


def needs_of(study: Study) -> Needs:
    """What the study needs as it stands. Trials that come later write what they need anew.

    Raises:
        StudyError: the database cannot be read.
    """
    on_front = {trial.number for trial in study.on_any_front()}
    named: set[str] = set()
    kept: set[str] = set()
    with study.guarded():
        under_way = [candidate.trial for candidate in study.ledger.candidates(is_open=True)]
        for candidate in study.ledger.candidates():
            artifacts = set(candidate.outcome.artifacts.values()) if candidate.outcome else set()
            named |= artifacts
            kept |= artifacts if candidate.trial in on_front else set()
        later = [result for trial in under_way for result in study.ledger.results(trial)]
        later += study.ledger.results(stage=FINAL_STAGE)
        for result in later:
            named |= set(result.artifacts.values())
            kept |= set(result.artifacts.values())
        working_since = min((attempt.queued_at for attempt in study.ledger.attempts(is_open=True)), default=None)
    return Needs(named=frozenset(named), kept=frozenset(kept), working_since=working_since)
