"""The crash-safe record of a study: candidates, stage attempts, results and events, beside Optuna's tables.

Every method is one transaction. A candidate is recorded before anything is queued for it, an attempt before its message
is published, a result before the next stage is queued, so at any kill point the tables say what is left to do. The
first result of a stage counts; what arrives later is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, Row

from orchestrator.errors import StudyError
from orchestrator.records import Ending, Event, Fault, FaultKind, Json, Outcome, Params, StageResult, Value, Violation

T = TypeVar("T")

LEDGER_VERSION = 1

_tables = sa.MetaData()
_study = sa.Table(
    "edgefront_study",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("study_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("created_at", sa.String(40), nullable=False),
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("objectives", sa.Text, nullable=False),
    sa.Column("active_seconds", sa.Float, nullable=False, default=0.0),
)
_candidates = sa.Table(
    "edgefront_candidates",
    _tables,
    sa.Column("trial", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("params", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("told", sa.Integer),
    sa.Column("started_at", sa.String(40), nullable=False),
    sa.Column("ended_at", sa.String(40)),
    sa.Column("outcome", sa.Text),
)
_attempts = sa.Table(
    "edgefront_attempts",
    _tables,
    sa.Column("trial", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("stage", sa.String(32), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("queued_at", sa.String(40), nullable=False),
    sa.Column("started_at", sa.String(40)),
    sa.Column("ended_at", sa.String(40)),
    sa.Column("seconds", sa.Float),
    sa.Column("worker", sa.String(200), nullable=False, default=""),
    sa.Column("fault", sa.Text),
)
_results = sa.Table(
    "edgefront_results",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("trial", sa.Integer, nullable=False),
    sa.Column("stage", sa.String(32), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("counts", sa.Boolean, nullable=False),
    sa.Column("result", sa.Text, nullable=False),
)
sa.Index(
    "edgefront_one_result",
    _results.c.trial,
    _results.c.stage,
    unique=True,
    sqlite_where=_results.c.counts,
    postgresql_where=_results.c.counts,
)
_events = sa.Table(
    "edgefront_events",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("fields", sa.Text, nullable=False),
)

_stopping = sa.Table(
    "edgefront_stopping",
    _tables,
    sa.Column("trial", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rule", sa.Text, nullable=False),
)

# States of an attempt. An open one may still give a result; a lost one may, too, if it was not lost after all; one that
# was taken back may not: the artifact it wrote is gone.
QUEUED, STARTED, ENDED, LOST, TAKEN_BACK = "queued", "started", "ended", "lost", "taken_back"
OPEN_STATES = (QUEUED, STARTED)
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


class Ledger:
    """The tables behind one engine. Errors of the database pass as SQLAlchemy raises them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, row: StudyRow) -> None:
        """Make the tables and the study's row; the row is what makes a study exist."""
        _tables.create_all(self._engine)
        with self._engine.begin() as connection:
            connection.execute(
                _study.insert().values(
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

    def delete(self) -> None:
        """Remove the study's row: the study is to be created anew."""
        with self._engine.begin() as connection:
            connection.execute(_study.delete())

    def study(self) -> StudyRow | None:
        """The study's row; None in a database without one.

        Raises:
            StudyError: written by another version.
        """
        if not sa.inspect(self._engine).has_table(_study.name):
            return None
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(_study)).first()
        if row is None:
            return None
        if row.version != LEDGER_VERSION:
            raise StudyError(
                f"the study was written by version {row.version} of the ledger, this reads {LEDGER_VERSION}"
            )
        return StudyRow(
            study_id=row.study_id,
            name=row.name,
            created_at=row.created_at,
            file=_read(row.file, dict),
            objectives=_read(row.objectives, dict),
            active_seconds=row.active_seconds,
        )

    def set_file(self, file: Json) -> None:
        with self._engine.begin() as connection:
            connection.execute(_study.update().values(file=json.dumps(file)))

    def set_active_seconds(self, seconds: float) -> None:
        with self._engine.begin() as connection:
            connection.execute(_study.update().values(active_seconds=seconds))

    def candidates(self) -> list[CandidateRow]:
        """All of them, by trial number."""
        with self._engine.connect() as connection:
            return [_candidate(row) for row in connection.execute(sa.select(_candidates).order_by(_candidates.c.trial))]

    def candidate(self, trial: int) -> CandidateRow:
        """One of them; it must have been recorded."""
        with self._engine.connect() as connection:
            return _candidate(connection.execute(sa.select(_candidates).where(_candidates.c.trial == trial)).one())

    def attempts(self) -> list[StageAttempt]:
        """All of them, in the order they were queued within a trial's stages."""
        order = (_attempts.c.trial, _attempts.c.queued_at, _attempts.c.attempt)
        with self._engine.connect() as connection:
            return [_attempt(row) for row in connection.execute(sa.select(_attempts).order_by(*order))]

    def attempts_of(self, trial: int, stage: str) -> list[StageAttempt]:
        where = (_attempts.c.trial == trial) & (_attempts.c.stage == stage)
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_attempts).where(where).order_by(_attempts.c.attempt))
            return [_attempt(row) for row in rows]

    def results(self, trial: int | None = None) -> list[StageResult]:
        """The results that count, of one trial or of all, in the order they came."""
        query = sa.select(_results.c.result).where(_results.c.counts).order_by(_results.c.id)
        if trial is not None:
            query = query.where(_results.c.trial == trial)
        with self._engine.connect() as connection:
            return [_read(text, StageResult.from_json) for text in connection.scalars(query)]

    def events(self) -> list[tuple[str, Event]]:
        """UTC stamp and event, oldest first."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_events).order_by(_events.c.id))
            return [(row.at, Event(name=row.name, fields=_read(row.fields, dict))) for row in rows]

    def record_candidate(self, trial: int, params: Params, seed: int, at: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(
                _candidates.insert().values(
                    trial=trial, params=json.dumps(dict(params)), seed=seed, state="open", started_at=at
                )
            )

    def record_attempt(self, trial: int, stage: str, attempt: int, task_id: str, at: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(
                _attempts.insert().values(
                    trial=trial, stage=stage, attempt=attempt, task_id=task_id, state=QUEUED, queued_at=at
                )
            )

    def record_stopping(self, trial: int, rule: Json | None) -> None:
        """Keep the rule under which a trial is trained (None: it is not stopped), for all attempts and runs."""
        _stopping.create(self._engine, checkfirst=True)  # databases begun before there were rules have no such table
        with self._engine.begin() as connection:
            connection.execute(_stopping.insert().values(trial=trial, rule=json.dumps(rule)))

    def stopping(self, trial: int) -> tuple[Json | None] | None:
        """The rule kept for a trial, in a tuple; None where none was ever decided on."""
        if not sa.inspect(self._engine).has_table(_stopping.name):
            return None
        with self._engine.connect() as connection:
            text = connection.scalar(sa.select(_stopping.c.rule).where(_stopping.c.trial == trial))
        return None if text is None else (json.loads(text),)

    def record_start(self, trial: int, stage: str, attempt: int, worker: str, at: str) -> None:
        """Note who took the attempt; late or unknown news change nothing."""
        where = _is_attempt(trial, stage, attempt) & _attempts.c.state.in_(OPEN_STATES)
        with self._engine.begin() as connection:
            connection.execute(_attempts.update().where(where).values(state=STARTED, worker=worker, started_at=at))

    def record_result(self, result: StageResult, at: str) -> bool:
        """Keep a complete or infeasible result; False when it does not count: unknown, taken back, or not the first."""
        with self._engine.begin() as connection:
            if not self._may_count(connection, result):
                return False
            connection.execute(
                _results.insert().values(
                    trial=result.trial,
                    stage=result.stage,
                    attempt=result.attempt,
                    counts=True,
                    result=json.dumps(result.to_json()),
                )
            )
            ended: dict[str, Any] = {"state": ENDED, "ended_at": at}
            here = _is_attempt(result.trial, result.stage, result.attempt)
            mine = {**ended, "seconds": result.seconds, "worker": result.worker}
            connection.execute(_attempts.update().where(here).values(**mine))
            others = _is_stage(result.trial, (result.stage,)) & _attempts.c.state.in_(OPEN_STATES)
            connection.execute(_attempts.update().where(others).values(**ended))
        return True

    def record_fault(
        self, trial: int, stage: str, attempt: int, fault: Fault, at: str, *, is_lost: bool = False
    ) -> bool:
        """Close an attempt without a result; False when it was not open."""
        where = _is_attempt(trial, stage, attempt) & _attempts.c.state.in_(OPEN_STATES)
        values = {"state": LOST if is_lost else ENDED, "ended_at": at, "fault": json.dumps(fault.to_json())}
        with self._engine.begin() as connection:
            return connection.execute(_attempts.update().where(where).values(**values)).rowcount > 0

    def take_back(self, trial: int, stages: Sequence[str]) -> None:
        """The results of these stages count no longer: an artifact of theirs is gone. They will run again."""
        with self._engine.begin() as connection:
            here = (_results.c.trial == trial) & _results.c.stage.in_(stages)
            connection.execute(_results.update().where(here).values(counts=False))
            attempts = _is_stage(trial, stages) & _attempts.c.fault.is_(None)
            connection.execute(_attempts.update().where(attempts).values(state=TAKEN_BACK))

    def end(self, trial: int, outcome: Outcome, at: str, events: Sequence[Event] = ()) -> None:
        """Close a candidate; all but faults are told and get a place in that order."""
        with self._engine.begin() as connection:
            told = None
            if outcome.ending in TOLD_ENDINGS:
                told = 1 + (connection.scalar(sa.select(sa.func.max(_candidates.c.told))) or 0)
            connection.execute(
                _candidates.update()
                .where(_candidates.c.trial == trial)
                .values(
                    state=outcome.ending.value, told=told, ended_at=at, outcome=json.dumps(outcome_to_json(outcome))
                )
            )
            _insert_events(connection, events, at)

    def record_events(self, events: Sequence[Event], at: str) -> None:
        with self._engine.begin() as connection:
            _insert_events(connection, events, at)

    def events_from(self, number: int) -> list[tuple[str, Event]]:
        """The events without the first ``number`` of them, for whoever has seen these."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_events).order_by(_events.c.id).offset(number))
            return [(row.at, Event(name=row.name, fields=_read(row.fields, dict))) for row in rows]

    def judge_again(self, file: Json, objectives: Json, outcomes: Mapping[int, Outcome], event: Event, at: str) -> None:
        """The study is edited: its file and objectives are these from now on, these ended trials have these outcomes,
        and ``event`` says so; all of it or nothing. The order of telling stays."""
        with self._engine.begin() as connection:
            values = {"file": json.dumps(file), "objectives": json.dumps(objectives)}
            connection.execute(_study.update().values(**values))
            for trial, outcome in outcomes.items():
                row = {"state": outcome.ending.value, "outcome": json.dumps(outcome_to_json(outcome))}
                connection.execute(_candidates.update().where(_candidates.c.trial == trial).values(**row))
            _insert_events(connection, (event,), at)

    def _may_count(self, connection: Connection, result: StageResult) -> bool:
        attempt = connection.execute(
            sa.select(_attempts.c.state).where(_is_attempt(result.trial, result.stage, result.attempt))
        ).first()
        if attempt is None or attempt.state == TAKEN_BACK:
            return False
        here = (_results.c.trial == result.trial) & (_results.c.stage == result.stage) & _results.c.counts
        return connection.execute(sa.select(_results.c.id).where(here)).first() is None


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


def _is_attempt(trial: int, stage: str, attempt: int) -> sa.ColumnElement[bool]:
    return (_attempts.c.trial == trial) & (_attempts.c.stage == stage) & (_attempts.c.attempt == attempt)


def _is_stage(trial: int, stages: Sequence[str]) -> sa.ColumnElement[bool]:
    return (_attempts.c.trial == trial) & _attempts.c.stage.in_(stages)


def _insert_events(connection: Connection, events: Sequence[Event], at: str) -> None:
    for event in events:
        connection.execute(_events.insert().values(at=at, name=event.name, fields=json.dumps(event.fields)))


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
