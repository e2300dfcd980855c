"""How a study stands this moment, as plain JSON for the live page; read from its database while another process runs
it.

Everything in it grows with what can be looked at, not with the age of the study: of the trials that have ended the last
are listed, and of all of them only the numbers that are plotted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.boards import base
from orchestrator.fronts import front
from orchestrator.ledger import CandidateRow, StageAttempt
from orchestrator.objectives import Objectives
from orchestrator.quantities import elapsed, show
from orchestrator.reading import FINAL_STAGE, StudyReader
from orchestrator.records import Ending, Event, Json, Outcome
from orchestrator.report.contents import quantity_of
from orchestrator.report.course import gains, seconds, tightenings
from orchestrator.studyfile import StudyFile

LISTED = 40
DRAWN_CHANGES = 1000
QUIET_AFTER_S = 900.0
_RATE_OVER = 20  # the last so many trials say how fast the study goes
_CLOSED = "study_stopped"
_TOLD = (Ending.COMPLETE.value, Ending.INFEASIBLE.value, Ending.STOPPED.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What the lab's list says of a submitted study: its state, what is wanted of it, why it does not run."""

    state: str
    wanted: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What was read of a study at ``now`` (seconds since the epoch). ``progress`` holds what workers last said of
    trials in training: ``{"epoch", "epochs", "accuracy"}`` by trial; ``stages`` are the study's, in their order."""

    file: StudyFile
    objectives: Objectives
    candidates: Sequence[CandidateRow]
    attempts: Sequence[StageAttempt]
    events: Sequence[tuple[str, Event]]
    stages: Sequence[str]
    now: float
    progress: Mapping[int, Json] = field(default_factory=dict)
    submitted: Standing | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trial:
    number: int
    state: str
    outcome: Outcome | None


def read_study(
    study: StudyReader,
    stages: Sequence[str],
    now: float,
    progress: Mapping[int, Json] | None = None,
    submitted: Standing | None = None,
) -> Seen:
    """Read what :func:`snapshot` needs; ``submitted`` is None of a study that is not on the lab's list.

    Raises:
        StudyError: the database cannot be read.
    """
    with study.guarded():
        row = study.ledger.study()
        return Seen(
            file=StudyFile.from_json(row.file) if row is not None else study.file,  # its budget may have been raised
            objectives=study.objectives,
            candidates=study.ledger.candidates(),
            attempts=study.ledger.attempts(),
            events=study.ledger.events(),
            stages=stages,
            now=now,
            progress=progress or {},
            submitted=submitted,
        )


def snapshot(seen: Seen) -> Json:
    """The page's data; amounts in base units, times in seconds since the epoch. Without news it stays the same."""
    file = seen.file
    ended = [_Trial(number=row.trial, state=row.state, outcome=row.outcome) for row in seen.candidates if row.outcome]
    on_front = {trial.number for trial in front(ended, seen.objectives)}
    history = _thinned(gains(seen.candidates, seen.objectives))
    counts = {state: sum(trial.state == state for trial in ended) for state in (*_TOLD, "fault")}
    return {
        "name": file.name,
        "board": " and ".join(file.kinds),
        "dataset": file.dataset.source,
        "family": file.network.family,
        "sampler": file.sampler.name,
        "told": sum(counts[state] for state in _TOLD),
        "budget": file.budget.trials,
        "state": _state(seen),
        "figures": _figures(seen, ended, on_front, counts, history),
        "objectives": _objectives(seen.objectives),
        "points": _points(ended, on_front, seen.objectives),
        "history": history,
        "edits": [[seconds(mark.at), mark.text] for mark in tightenings(seen.events)],
        "stages": list(dict.fromkeys(base(stage) for stage in seen.stages)),
        "under_way": _under_way(seen),
        "ended": _ended(seen, on_front),
    }


def _objectives(objectives: Objectives) -> list[Json]:
    limits = dict(zip(objectives.names, objectives.limits, strict=True))
    return [quantity_of(name, limit) for name, limit in limits.items()]


# ---------------------------------------------------------------------------------------------------- the state


def _state(seen: Seen) -> Json:
    """``word`` is one of new, running, pausing, stopping, quiet, waiting, paused, failed, stopped, ended; ``text`` says
    it to a person."""
    last = _last_sign(seen)
    finished = _finished(seen)
    is_closed = finished is not None and finished.name == _CLOSED
    if seen.submitted is not None and not is_closed and (found := _submitted(seen.submitted)):
        word, text = found
        return {"word": word, "text": text, "since": last}
    if finished is not None:
        reason = _CLOSED if is_closed else str(finished.fields.get("reason", ""))
        word = {"interrupted": "stopped", _CLOSED: "stopped", "paused": "paused"}.get(reason, "ended")
        return {"word": word, "text": str(finished.fields.get("text") or reason), "since": last}
    if last is None:
        return {"word": "new", "text": "nothing has begun yet", "since": None}
    if seen.now - last > QUIET_AFTER_S and not seen.progress:
        return {"word": "quiet", "text": "nothing new", "since": last}
    return {"word": "running", "text": "running", "since": last}


def _submitted(standing: Standing) -> tuple[str, str] | None:
    """Word and text for what the record of the study itself does not tell."""
    if standing.state in ("submitted", "running") and standing.wanted != "run":
        return {
            "pause": ("pausing", "pausing: trials under way end, and none begins"),
            "stop": ("stopping", "being stopped for good"),
        }[standing.wanted]
    if standing.state == "failed":
        return "failed", f"failed: {standing.reason}"
    if standing.state == "paused":
        return "paused", "paused; edgefront resume lets it go on"
    if standing.state == "submitted":
        return "waiting", f"waits to be run: {standing.reason}" if standing.reason else "waits to be run"
    return None


def _finished(seen: Seen) -> Event | None:
    """The event with which the last run ended, or the study for good; None while none has, or another has begun
    since."""
    ends = ("study_finished", _CLOSED)
    runs = [event for _, event in seen.events if event.name in ("study_started", "study_resumed", *ends)]
    return runs[-1] if runs and runs[-1].name in ends else None


def _last_sign(seen: Seen) -> float | None:
    stamps = [stamp for stamp, _ in seen.events[-1:]]
    stamps += [stamp for row in seen.candidates for stamp in (row.started_at, row.ended_at) if stamp]
    stamps += [stamp for item in seen.attempts for stamp in (item.queued_at, item.started_at, item.ended_at) if stamp]
    return max(map(seconds, stamps), default=None)


# -------------------------------------------------------------------------------------------------- the figures


def _figures(
    seen: Seen,
    ended: Sequence[_Trial],
    on_front: set[int],
    counts: Mapping[str, int],
    history: Sequence[tuple[float, float]],
) -> list[Json]:
    judged = counts["complete"] + counts["infeasible"]
    told = sum(counts[state] for state in _TOLD)
    words = {**{state: state for state in _TOLD}, "fault": "fault" if counts["fault"] == 1 else "faults"}
    about = ", ".join(f"{counts[state]} {word}" for state, word in words.items() if counts[state]) or "none ended"
    hypervolume = history[-1][1] if history else 0.0
    return [
        {
            "title": "hypervolume",
            "figure": f"{hypervolume:.3f}",
            "about": "" if history else "no front yet",
            "since": history[-1][0] if history else None,  # of the last gain
        },
        {"title": "on the front", "figure": str(len(on_front)), "about": f"of {told} told"},
        *_best(seen.objectives, [trial for trial in ended if trial.number in on_front]),
        {
            "title": "feasible",
            "figure": f"{100 * counts['complete'] / judged:.0f} %" if judged else "–",
            "about": about,
        },
        _pace(seen, told),
    ]


def _best(objectives: Objectives, members: Sequence[_Trial]) -> list[Json]:
    found = []
    for name in objectives.names:
        values = {trial.number: trial.outcome.values[name] for trial in members if trial.outcome is not None}
        number = min(values, key=lambda one: values[one].amount, default=None)
        if number is not None:
            value = values[number]
            words = {"error": "best error", "latency": "fastest", "energy": "least energy"}
            title = words.get(name, f"least {quantity_of(name, None)['title']}")
            about = f"trial {number}, {value.source.value}"
            found.append({"title": title, "figure": show(value.amount, value.unit, name), "about": about})
    return found


def _pace(seen: Seen, told: int) -> Json:
    """Trials an hour, of the last ones, and what is left at that pace."""
    stamps = sorted(seconds(row.ended_at) for row in seen.candidates if row.ended_at and row.state in _TOLD)
    last = stamps[-_RATE_OVER:]
    span_s = last[-1] - last[0] if len(last) > 1 else 0.0
    if span_s <= 0:
        return {"title": "trials an hour", "figure": "–", "about": "after two trials"}
    rate = (len(last) - 1) / span_s
    left_s = max(0, seen.file.budget.trials - told) / rate
    about = f"{elapsed(left_s)} left" if left_s else "budget used up"
    hourly = 3600 * rate
    figure = f"{hourly:,.0f}" if hourly >= 10 else f"{hourly:.1f}"
    return {"title": "trials an hour", "figure": figure, "about": about}


# --------------------------------------------------------------------------------------------- front and course


def _points(ended: Sequence[_Trial], on_front: set[int], objectives: Objectives) -> Json:
    """Columns, one entry a trial that ended with some value."""
    some = [trial for trial in ended if trial.outcome is not None and trial.outcome.values]
    return {
        "number": [trial.number for trial in some],
        "state": ["front" if trial.number in on_front else trial.state for trial in some],
        "values": {name: [_amount(trial, name) for trial in some] for name in objectives.names},
    }


def _amount(trial: _Trial, name: str) -> float | None:
    assert trial.outcome is not None
    value = trial.outcome.values.get(name)
    return value.amount if value is not None and math.isfinite(value.amount) else None


def _thinned(gained: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of very many gains the last and evenly spread others."""
    step = math.ceil(len(gained) / DRAWN_CHANGES) if gained else 1
    return gained[::-1][::step][::-1]


# -------------------------------------------------------------------------------------------------- the tables


def _under_way(seen: Seen) -> list[Json]:
    """The open trials, by number: their stage, who works on it, how far it is."""
    last: dict[int, StageAttempt] = {}
    for item in seen.attempts:
        if item.stage != FINAL_STAGE and (item.is_open or item.trial not in last or not last[item.trial].is_open):
            last[item.trial] = item
    rows = [row for row in seen.candidates if row.outcome is None]
    return [_open_row(row, last.get(row.trial), seen) for row in rows]


def _open_row(row: CandidateRow, attempt: StageAttempt | None, seen: Seen) -> Json:
    if attempt is None:
        since = seconds(row.started_at)
        return {"number": row.trial, "stage": "", "attempt": 1, "worker": "", "state": "proposed", "since": since}
    since = seconds(attempt.ended_at or attempt.started_at or attempt.queued_at)
    state = {"started": "running", "queued": "queued"}.get(attempt.state, "between stages")
    return {
        "number": row.trial,
        "stage": base(attempt.stage),
        "attempt": attempt.attempt,
        "worker": attempt.worker,
        "state": state,
        "since": since,
        **(seen.progress.get(row.trial, {}) if state == "running" else {}),
    }


def _ended(seen: Seen, on_front: set[int]) -> list[Json]:
    """The trials that ended last, the newest first."""
    rows = [row for row in seen.candidates if row.outcome is not None and row.ended_at]
    newest = sorted(rows, key=lambda row: (row.ended_at or "", row.trial), reverse=True)[:LISTED]
    return [_ended_row(row, on_front, seen.objectives) for row in newest]


def _ended_row(row: CandidateRow, on_front: set[int], objectives: Objectives) -> Json:
    outcome = row.outcome
    assert outcome is not None and row.ended_at is not None
    values = {name: outcome.values[name] for name in objectives.names if name in outcome.values}
    return {
        "number": row.trial,
        "state": "front" if row.trial in on_front else row.state,
        "ended": seconds(row.ended_at),
        "seconds": sum(outcome.stage_seconds.values()),
        "values": {
            name: {"text": show(value.amount, value.unit, name), "source": value.source.value}
            for name, value in values.items()
        },
        "reason": _reason(outcome),
    }


def _reason(outcome: Outcome) -> str:
    if outcome.fault is not None:
        return outcome.fault.reason
    return outcome.reason or "; ".join(violation.message for violation in outcome.violations)
