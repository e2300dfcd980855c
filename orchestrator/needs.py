"""Which artifacts a study cannot do without, read from its ledger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

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
    named: set[str] = set()
    kept: set[str] = set()
    with study.guarded():
        # What is under way comes first: a trial that ends meanwhile is found there, or below on the front.
        under_way = [candidate.trial for candidate in study.ledger.candidates(is_open=True)]
        attempts = study.ledger.attempts(is_open=True)
        # Those of the last look at the test split are under way while their trial has ended.
        begun = [item for item in attempts if item.trial in under_way] + study.ledger.attempts(is_under_way=True)
        working_since = min((item.queued_at for item in begun), default=None)
        for result in [*study.ledger.results(trials=under_way), *study.ledger.results(stage=FINAL_STAGE)]:
            named |= set(result.artifacts.values())
        kept |= named
        on_front = {trial.number for trial in study.on_any_front()}
        for candidate in study.ledger.candidates():
            artifacts = set(candidate.outcome.artifacts.values()) if candidate.outcome else set()
            named |= artifacts
            kept |= artifacts if candidate.trial in on_front else set()
    return Needs(named=frozenset(named), kept=frozenset(kept), working_since=working_since)


def cutoff(needs: Iterable[Needs], now: datetime, grace_s: float) -> float:
    """The time (seconds since 1970) from which on nothing in the studies' store is removed: ``grace_s`` ago, or when
    the oldest attempt that is still under way was queued."""
    times = [datetime.fromisoformat(item.working_since).timestamp() for item in needs if item.working_since]
    return min([now.timestamp() - grace_s, *times])
