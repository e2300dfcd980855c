"""The crash-safe record of a study: candidates, stage attempts, results and events, beside Optuna's tables.

Every method is one transaction, or several are :meth:`Ledger.together`. A candidate is recorded before anything is
queued for it, an attempt before its message is published, a result before the next stage is queued, so at any kill
point the tables say what is left to do. The first result of a stage counts; what arrives later is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, Row

from orchestrator.errors import StudyError
from orchestrator.records import Ending, Event, Fault, FaultKind, Json, Outcome, Params, StageResult, Value, Violation
from orchestrator.tables import (
    ATTEMPTS,
    CANDIDATES,
    EVENTS,
    HOLDER,
    LEDGER_VERSION,
    NO_HOLDER,
    RESULTS,
    STOPPING,
    STUDY,
    TABLES,
)
from orchestrator.transactions import Transactions

T = TypeVar("T")

_MOST_IN_ONE = 500

# States of an attempt. An open one may still give a result; a lost one may, too, if it was not lost after all; one that
# was taken back may not: the artifact it wrote is gone.
QUEUED, STARTED, ENDED, LOST, TAKEN_BACK = "queued", "started", "ended", "lost", "taken_back"
OPEN_STATES = (QUEUED, STARTED)
# State of a candidate that has not ended; afterwards it is its ending.
OPEN = "open"
TOLD_ENDINGS = (Ending.COMPLETE, Ending.INFEASIBLE, Ending.STOPPED)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRow:
    """What was fixed when the study was created; ``active_seconds`` is the wall-clock time its runs took so far."""

    study_id: str
    name: str
    created_at: str
    file: Json
    objectives: Json
    active_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateRow:
    """A recorded candidate; ``state`` is ``open`` or its ending, ``told`` its place in the order of telling, from 1."""

    trial: int
    params: Params
    seed: int
    state: str
    told: int | None
    started_at: str
    ended_at: str | None
    outcome: Outcome | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StageAttempt:
    """One try at one stage of one trial."""

    trial: int
    stage: str
    attempt: int
    task_id: str
    state: str
    queued_at: str
    started_at: str | None
    ended_at: str | None
    seconds: float | None
    worker: str
    fault: Fault | None

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES

    @property
    def is_failed(self) -> bool:
        """Counts towards the cap of attempts: lost, or ended by a transient fault."""
        is_transient = self.fault is not None and self.fault.kind is FaultKind.TRANSIENT
        return self.state == LOST or (self.state == ENDED and is_transient)


@dataclass(frozen=True, slots=True)
class Amounts:
    """The bare numbers of a complete trial's values, in base units."""

    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class AmountsRow:
    """What fronts and sums need of a candidate; ``outcome`` is None unless it is complete."""

    number: int
    state: str
    told: int | None
    outcome: Amounts | None


class OutdatedStudy(StudyError):
    """The tables are of an earlier version; ``Study.open`` upgrades them."""


class Ledger:
    """The tables behind one engine. Errors of the database pass as SQLAlchemy raises them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._transactions = Transactions(engine)
        self._starts: list[tuple[int, str, int, str, str]] = []

    @contextmanager
    def together(self) -> Iterator[None]:
        """All that is recorded inside reaches the disk as one transaction, with the starts noted so far; an exception
        undoes it. Optuna must not be written to meanwhile: SQLite has one writer at a time."""
        with self._transactions.together(self._record_starts):
            yield

    def create(self, row: StudyRow) -> None:
        """Make the tables and the study's row; the row is what makes a study exist."""
        TABLES.create_all(self._engine)
        with self._transactions.writing() as connection:
            connection.execute(
                STUDY.insert().values(
                    id=1,
                    version=LEDGER_VERSION,
                    study_id=row.study_id,
                    name=row.name,
                    created_at=row.created_at,
                    file=json.dumps(row.file),
                    objectives=json.dumps(row.objectives),
                    active_seconds=row.active_seconds,
                )
            )
            connection.execute(HOLDER.delete())
            connection.execute(HOLDER.insert().values(NO_HOLDER))

    def delete(self) -> None:
        """Remove the study's row: the study is to be created anew."""
        with self._transactions.writing() as connection:
            connection.execute(STUDY.delete())

    def study(self) -> StudyRow | None:
        """The study's row; None in a database without one.

        Raises:
            StudyError: written by another version.
        """
        version = self.version()
        if version is None:
            return None
        if version > LEDGER_VERSION:
            raise StudyError(
                f"the study was written by version {version} of the ledger, this Edgefront reads up to "
                f"{LEDGER_VERSION}: install the newer one that wrote it, or restore a backup from before its upgrade"
            )
        if version < LEDGER_VERSION:
            raise OutdatedStudy(f"the study was written by version {version} of the ledger and is not upgraded yet")
        with self._transactions.reading() as connection:
            row = connection.execute(sa.select(STUDY)).one()
        return StudyRow(
            study_id=row.study_id,
            name=row.name,
            created_at=row.created_at,
            file=_read(row.file, dict),
            objectives=_read(row.objectives, dict),
            active_seconds=row.active_seconds,
        )

    def version(self) -> int | None:
        """The version that the study was written by; None in a database without a study."""
        if not sa.inspect(self._engine).has_table(STUDY.name):
            return None
        with self._transactions.reading() as connection:
            return connection.scalar(sa.select(STUDY.c.version))

    def set_file(self, file: Json) -> None:
        with self._transactions.writing() as connection:
            connection.execute(STUDY.update().values(file=json.dumps(file)))

    def rename(self, name: str, study_id: str, file: Json) -> None:
        with self._transactions.writing() as connection:
            connection.execute(STUDY.update().values(name=name, study_id=study_id, file=json.dumps(file)))

    def set_active_seconds(self, seconds: float) -> None:
        with self._transactions.writing() as connection:
            connection.execute(STUDY.update().values(active_seconds=seconds))

    def candidates(self, *, is_open: bool = False) -> list[CandidateRow]:
        """All of them, or those that have not ended, by trial number."""
        query = sa.select(CANDIDATES).order_by(CANDIDATES.c.trial)
        if is_open:
            query = query.where(CANDIDATES.c.state == OPEN)
        with self._transactions.reading() as connection:
            return [_candidate(row) for row in connection.execute(query)]

    def has_candidates(self) -> bool:
        with self._transactions.reading() as connection:
            return connection.execute(sa.select(CANDIDATES.c.trial).limit(1)).first() is not None

    def candidate(self, trial: int) -> CandidateRow:
        """One of them; it must have been recorded."""
        with self._transactions.reading() as connection:
            return _candidate(connection.execute(sa.select(CANDIDATES).where(CANDIDATES.c.trial == trial)).one())

    def amounts(self) -> Iterator[AmountsRow]:
        """Of each candidate, by trial number, the little that fronts and sums are made of."""
        query = sa.select(CANDIDATES.c.trial, CANDIDATES.c.state, CANDIDATES.c.told, CANDIDATES.c.outcome)
        with self._transactions.reading() as connection:
            for row in connection.execute(query.order_by(CANDIDATES.c.trial)):
                amounts = _read(row.outcome, _amounts) if row.state == Ending.COMPLETE.value else None
                yield AmountsRow(row.trial, row.state, row.told, amounts)

    def some_candidates(self, trials: Sequence[int]) -> list[CandidateRow]:
        """Those of these trials that are recorded, by number."""
        found = []
        with self._transactions.reading() as connection:
            for part in _parts(trials):
                query = sa.select(CANDIDATES).where(CANDIDATES.c.trial.in_(part))
                found += [_candidate(row) for row in connection.execute(query)]
        return sorted(found, key=lambda row: row.trial)

    def attempts(self, *, is_open: bool = False, is_under_way: bool = False) -> list[StageAttempt]:
        """All of them, or those of candidates that have not ended or ended in a fault, or those that may still give a
        result; in the order they were queued within a trial."""
        query = sa.select(ATTEMPTS).order_by(ATTEMPTS.c.trial, ATTEMPTS.c.queued_at, ATTEMPTS.c.attempt)
        if is_open:
            asked = sa.select(CANDIDATES.c.trial).where(CANDIDATES.c.state.in_((OPEN, Ending.FAULT.value)))
            query = query.where(ATTEMPTS.c.trial.in_(asked))
        if is_under_way:
            query = query.where(ATTEMPTS.c.state.in_(OPEN_STATES))
        with self._transactions.reading() as connection:
            return [_attempt(row) for row in connection.execute(query)]

    def attempts_of(self, trial: int, stage: str) -> list[StageAttempt]:
        where = (ATTEMPTS.c.trial == trial) & (ATTEMPTS.c.stage == stage)
        with self._transactions.reading() as connection:
            rows = connection.execute(sa.select(ATTEMPTS).where(where).order_by(ATTEMPTS.c.attempt))
            return [_attempt(row) for row in rows]

    def results(
        self, trial: int | None = None, *, stage: str | None = None, trials: Sequence[int] | None = None
    ) -> list[StageResult]:
        """The results that count, of one trial, one stage, some trials or of all, in the order they came."""
        query = sa.select(RESULTS.c.result).where(RESULTS.c.counts).order_by(RESULTS.c.id)
        if stage is not None:
            query = query.where(RESULTS.c.stage == stage)
        if trial is not None:
            trials = [trial]
        queries = [query] if trials is None else [query.where(RESULTS.c.trial.in_(part)) for part in _parts(trials)]
        with self._transactions.reading() as connection:
            texts = [text for one in queries for text in connection.scalars(one)]
        return [_read(text, StageResult.from_json) for text in texts]

    def each_result(self) -> Iterator[StageResult]:
        """All results that count, in the order they came, one after the other: with their notes they are large."""
        query = sa.select(RESULTS.c.result).where(RESULTS.c.counts).order_by(RESULTS.c.id)
        with self._engine.connect().execution_options(yield_per=_MOST_IN_ONE) as connection:
            for text in connection.scalars(query):
                yield _read(text, StageResult.from_json)

    def events(self) -> list[tuple[str, Event]]:
        """UTC stamp and event, oldest first."""
        with self._transactions.reading() as connection:
            rows = connection.execute(sa.select(EVENTS).order_by(EVENTS.c.id))
            return [(row.at, Event(name=row.name, fields=_read(row.fields, dict))) for row in rows]

    def record_candidate(self, trial: int, params: Params, seed: int, at: str) -> None:
        with self._transactions.writing() as connection:
            given = {"trial": trial, "params": json.dumps(dict(params)), "seed": seed, "state": OPEN, "started_at": at}
            connection.execute(_ADD_CANDIDATE, given)

    def record_attempt(self, trial: int, stage: str, attempt: int, task_id: str, at: str) -> None:
        with self._transactions.writing() as connection:
            queued = {"trial": trial, "stage": stage, "attempt": attempt, "task_id": task_id, "queued_at": at}
            connection.execute(_ADD_ATTEMPT, {**queued, "state": QUEUED, "worker": ""})

    def record_stopping(self, trial: int, rule: Json | None) -> None:
        """Keep the rule under which a trial is trained (None: it is not stopped), for all attempts and runs."""
        with self._transactions.writing() as connection:
            connection.execute(_ADD_STOPPING, {"trial": trial, "rule": json.dumps(rule)})

    def stopping(self, trial: int) -> tuple[Json | None] | None:
        """The rule kept for a trial, in a tuple; None where none was ever decided on."""
        with self._transactions.reading() as connection:
            text = connection.scalar(_STOPPING_OF, {"of_trial": trial})
        return None if text is None else (json.loads(text),)

    def note_start(self, trial: int, stage: str, attempt: int, worker: str, at: str) -> None:
        """Have ``record_start`` done with the next transaction of :meth:`together`: it is for whoever looks on."""
        self._starts.append((trial, stage, attempt, worker, at))

    def _record_starts(self) -> None:
        starts, self._starts = self._starts, []
        for start in starts:
            self.record_start(*start)

    def record_start(self, trial: int, stage: str, attempt: int, worker: str, at: str) -> None:
        """Note who took the attempt; late or unknown news change nothing."""
        which = {"of_trial": trial, "of_stage": stage, "of_attempt": attempt}
        with self._transactions.writing() as connection:
            connection.execute(_START, {**which, "to_worker": worker, "to_started": at})

    def record_result(self, result: StageResult, at: str) -> bool:
        """Keep a complete or infeasible result; False when it does not count: unknown, taken back, or not the first."""
        with self._transactions.writing() as connection:
            which = {"of_trial": result.trial, "of_stage": result.stage}
            mine = {**which, "of_attempt": result.attempt}
            if not self._may_count(connection, mine):
                return False
            found = {"trial": result.trial, "stage": result.stage, "attempt": result.attempt}
            connection.execute(_ADD_RESULT, {**found, "counts": True, "result": json.dumps(result.to_json())})
            facts = {"to_ended": at, "to_seconds": result.seconds, "to_worker": result.worker}
            connection.execute(_END_ATTEMPT, {**mine, **facts})
            connection.execute(_END_OTHERS, {**which, "to_ended": at})
        return True

    def record_fault(
        self, trial: int, stage: str, attempt: int, fault: Fault, at: str, *, is_lost: bool = False
    ) -> bool:
        """Close an attempt without a result; False when it was not open."""
        where = _is_attempt(trial, stage, attempt) & ATTEMPTS.c.state.in_(OPEN_STATES)
        values = {"state": LOST if is_lost else ENDED, "ended_at": at, "fault": json.dumps(fault.to_json())}
        with self._transactions.writing() as connection:
            return connection.execute(ATTEMPTS.update().where(where).values(**values)).rowcount > 0

    def take_back(self, trial: int, stages: Sequence[str]) -> None:
        """The results of these stages count no longer: an artifact of theirs is gone. They will run again."""
        with self._transactions.writing() as connection:
            here = (RESULTS.c.trial == trial) & RESULTS.c.stage.in_(stages)
            connection.execute(RESULTS.update().where(here).values(counts=False))
            attempts = _is_stage(trial, stages) & ATTEMPTS.c.fault.is_(None)
            connection.execute(ATTEMPTS.update().where(attempts).values(state=TAKEN_BACK))

    def end(self, trial: int, outcome: Outcome, at: str, events: Sequence[Event] = ()) -> None:
        """Close a candidate; all but faults are told and get a place in that order."""
        with self._transactions.writing() as connection:
            told = None
            if outcome.ending in TOLD_ENDINGS:
                told = 1 + (connection.scalar(_LAST_TOLD) or 0)
            facts = {"to_state": outcome.ending.value, "to_told": told, "to_ended": at}
            text = json.dumps(outcome_to_json(outcome))
            connection.execute(_END_CANDIDATE, {"of_trial": trial, "to_outcome": text, **facts})
            _insert_events(connection, events, at)

    def record_events(self, events: Sequence[Event], at: str) -> None:
        with self._transactions.writing() as connection:
            _insert_events(connection, events, at)

    def events_from(self, number: int) -> list[tuple[str, Event]]:
        """The events without the first ``number`` of them, for whoever has seen these."""
        with self._transactions.reading() as connection:
            rows = connection.execute(sa.select(EVENTS).order_by(EVENTS.c.id).offset(number))
            return [(row.at, Event(name=row.name, fields=_read(row.fields, dict))) for row in rows]

    def judge_again(self, file: Json, objectives: Json, outcomes: Mapping[int, Outcome], event: Event, at: str) -> None:
        """The study is edited: its file and objectives are these from now on, these ended trials have these outcomes,
        and ``event`` says so; all of it or nothing. The order of telling stays."""
        with self._transactions.writing() as connection:
            values = {"file": json.dumps(file), "objectives": json.dumps(objectives)}
            connection.execute(STUDY.update().values(**values))
            for trial, outcome in outcomes.items():
                row = {"state": outcome.ending.value, "outcome": json.dumps(outcome_to_json(outcome))}
                connection.execute(CANDIDATES.update().where(CANDIDATES.c.trial == trial).values(**row))
            _insert_events(connection, (event,), at)

    def _may_count(self, connection: Connection, which: Mapping[str, Any]) -> bool:
        attempt = connection.execute(_STATE_OF_ATTEMPT, which).first()
        if attempt is None or attempt.state == TAKEN_BACK:
            return False
        return connection.execute(_RESULT_THAT_COUNTS, which).first() is None


# What every stage of every trial asks of the database, put together once: that takes longer than to run it.
_OF_STAGE = (ATTEMPTS.c.trial == sa.bindparam("of_trial")) & (ATTEMPTS.c.stage == sa.bindparam("of_stage"))
_OF_ATTEMPT = _OF_STAGE & (ATTEMPTS.c.attempt == sa.bindparam("of_attempt"))
_ADD_CANDIDATE, _ADD_STOPPING = CANDIDATES.insert(), STOPPING.insert()
_ADD_ATTEMPT, _ADD_RESULT = ATTEMPTS.insert(), RESULTS.insert()
_STOPPING_OF = sa.select(STOPPING.c.rule).where(STOPPING.c.trial == sa.bindparam("of_trial"))
_LAST_TOLD = sa.select(sa.func.max(CANDIDATES.c.told))
_END_CANDIDATE = (
    CANDIDATES.update()
    .where(CANDIDATES.c.trial == sa.bindparam("of_trial"))
    .values(
        state=sa.bindparam("to_state"),
        told=sa.bindparam("to_told"),
        ended_at=sa.bindparam("to_ended"),
        outcome=sa.bindparam("to_outcome"),
    )
)
_START = (
    ATTEMPTS.update()
    .where(_OF_ATTEMPT & ATTEMPTS.c.state.in_(OPEN_STATES))
    .values(state=STARTED, worker=sa.bindparam("to_worker"), started_at=sa.bindparam("to_started"))
)
_END_ATTEMPT = (
    ATTEMPTS.update()
    .where(_OF_ATTEMPT)
    .values(
        state=ENDED,
        ended_at=sa.bindparam("to_ended"),
        seconds=sa.bindparam("to_seconds"),
        worker=sa.bindparam("to_worker"),
    )
)
_END_OTHERS = (
    ATTEMPTS.update()
    .where(_OF_STAGE & ATTEMPTS.c.state.in_(OPEN_STATES))
    .values(state=ENDED, ended_at=sa.bindparam("to_ended"))
)
_STATE_OF_ATTEMPT = sa.select(ATTEMPTS.c.state).where(_OF_ATTEMPT)
_RESULT_THAT_COUNTS = sa.select(RESULTS.c.id).where(
    (RESULTS.c.trial == sa.bindparam("of_trial")) & (RESULTS.c.stage == sa.bindparam("of_stage")) & RESULTS.c.counts
)


def outcome_to_json(outcome: Outcome) -> Json:
    return {
        "ending": outcome.ending.value,
        "values": {name: value.to_json() for name, value in outcome.values.items()},
        "artifacts": dict(outcome.artifacts),
        "violations": [violation.to_json() for violation in outcome.violations],
        "fault": outcome.fault.to_json() if outcome.fault else None,
        "stage_seconds": dict(outcome.stage_seconds),
        "reason": outcome.reason,
    }


def _read(text: str, decode: Callable[[Any], T]) -> T:
    """The record that is kept as JSON in ``text``.

    Raises:
        StudyError: it is damaged, or of another version.
    """
    try:
        return decode(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"the study's database holds a record that cannot be read ({error!r}): {text[:80]!r}. It is damaged or "
            "written by another version; restore it from a copy, or move it away to begin the study anew."
        ) from error


def outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    return Outcome(
        ending=Ending(data["ending"]),
        values={name: Value.from_json(value) for name, value in data["values"].items()},
        artifacts=data["artifacts"],
        violations=tuple(Violation.from_json(item) for item in data["violations"]),
        fault=Fault.from_json(data["fault"]) if data["fault"] else None,
        stage_seconds=data["stage_seconds"],
        reason=data.get("reason", ""),
    )


def _amounts(data: Mapping[str, Any]) -> Amounts:
    return Amounts({name: value["amount"] for name, value in data["values"].items()})


def _parts(trials: Sequence[int]) -> list[Sequence[int]]:
    """As many as a database takes in one statement."""
    return [trials[start : start + _MOST_IN_ONE] for start in range(0, len(trials), _MOST_IN_ONE)]


def _is_attempt(trial: int, stage: str, attempt: int) -> sa.ColumnElement[bool]:
    return (ATTEMPTS.c.trial == trial) & (ATTEMPTS.c.stage == stage) & (ATTEMPTS.c.attempt == attempt)


def _is_stage(trial: int, stages: Sequence[str]) -> sa.ColumnElement[bool]:
    return (ATTEMPTS.c.trial == trial) & ATTEMPTS.c.stage.in_(stages)


def _insert_events(connection: Connection, events: Sequence[Event], at: str) -> None:
    for event in events:
        connection.execute(EVENTS.insert().values(at=at, name=event.name, fields=json.dumps(event.fields)))


def _candidate(row: Row[Any]) -> CandidateRow:
    return CandidateRow(
        trial=row.trial,
        params=_read(row.params, dict),
        seed=row.seed,
        state=row.state,
        told=row.told,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=_read(row.outcome, outcome_from_json) if row.outcome else None,
    )


def _attempt(row: Row[Any]) -> StageAttempt:
    fields = dict(row._mapping)
    fields["fault"] = _read(row.fault, Fault.from_json) if row.fault else None
    return StageAttempt(**fields)
