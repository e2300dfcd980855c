"""A study on disk: its file, its database, its artifacts, in one folder.

``study.yaml``  the study file as it was given
``study.db``    Optuna's tables and the ledger's (SQLite, write-ahead log, every commit flushed to the disk)
``artifacts/``  weights, networks, firmware, by content
``logs/``, ``broker/``  what a run needs beside itself
"""

from __future__ import annotations

import fcntl
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy as sa
import yaml
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy.exc import DBAPIError

from orchestrator.errors import StudyError, UsageError
from orchestrator.ledger import CandidateRow, Ledger, StageAttempt, StudyRow
from orchestrator.objectives import Objectives
from orchestrator.pareto import hypervolume, non_dominated
from orchestrator.ports import EventSink
from orchestrator.records import Ending, Event, Json, Outcome, Params, StageResult, Value
from orchestrator.studyfile import StudyFile

DATABASE_FILE = "study.db"
STUDY_COPY = "study.yaml"
LOCK_FILE = "study.lock"
FINAL_STAGE = "final"
FINAL_VALUE = "test_error"
_BUSY_TIMEOUT_S = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One trial as it stands: ``state`` is ``proposed``, ``running``, ``complete``, ``infeasible`` or ``fault``;
    ``stage`` and ``attempt`` are the current ones or the last, ``notes`` what each stage noted."""

    number: int
    params: Params
    state: str
    stage: str
    attempt: int
    outcome: Outcome | None
    started_at: str
    ended_at: str | None
    notes: Mapping[str, Json]
    worker: str
    seed: int
    told: int | None = None


@dataclass(kw_only=True)
class Study:
    """An opened study. Reading is safe while another process runs it; running it needs ``locked``.

    Raises (all of it):
        StudyError: the database cannot be read or written; the text names the file and what to do.
    """

    folder: Path
    file: StudyFile
    study_id: str
    objectives: Objectives
    optuna: optuna.Study
    ledger: Ledger
    created_at: str = ""
    _storage: RDBStorage = field(repr=False)
    _is_locked: bool = False

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a study was begun in the folder (its creation may have been interrupted)."""
        return (folder / DATABASE_FILE).exists()

    @staticmethod
    def create(folder: Path, file: StudyFile, objectives: Objectives, *, source: Path | None = None) -> Study:
        """Begin a study; ``source`` is the file it was read from, copied as it is. Finishes an interrupted creation.

        Raises:
            StudyError: the folder holds a study already, or something else's database.
        """
        folder.mkdir(parents=True, exist_ok=True)
        database = folder / DATABASE_FILE
        with _explained(database):
            _check_database(database, is_new=True)
            storage = _open_storage(database)
            ledger = Ledger(storage.engine)
            if ledger.study() is not None:
                raise StudyError(f"{folder} holds a study already; open it, or choose another name")
            _write_copy(folder / STUDY_COPY, file, source)
            directions = [StudyDirection.MINIMIZE] * len(objectives.names)
            study = optuna.create_study(
                study_name=file.name, storage=storage, directions=directions, load_if_exists=True
            )
            ledger.create(
                StudyRow(
                    study_id=str(uuid.uuid4()),
                    name=file.name,
                    created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                    file=file.to_json(),
                    objectives=_objectives_to_json(objectives),
                    active_seconds=0.0,
                )
            )
            return _assemble(folder, ledger, study, storage)

    @staticmethod
    def open(folder: Path) -> Study:
        """Open the study in ``folder``."""
        database = folder / DATABASE_FILE
        if not database.exists():
            raise StudyError(f"there is no study in {folder}: {DATABASE_FILE} is missing")
        with _explained(database):
            _check_database(database, is_new=False)
            storage = _open_storage(database)
            ledger = Ledger(storage.engine)
            row = ledger.study()
            if row is None:
                raise StudyError(
                    f"{database} holds no complete study: its creation was interrupted or it is not Edgefront's. "
                    "Delete it, or move it away, and run the study file again."
                )
            study = optuna.load_study(study_name=row.name, storage=storage)
            return _assemble(folder, ledger, study, storage)

    @staticmethod
    def open_or_create(folder: Path, file: StudyFile, objectives: Objectives, *, source: Path | None = None) -> Study:
        """The study in ``folder``, begun if need be, with the budget, parallelism and early stopping of ``file``.

        Raises:
            UsageError: ``file`` differs from the study in anything else; the text names the fields.
        """
        if not Study.exists(folder) or not _is_complete(folder / DATABASE_FILE):
            return Study.create(folder, file, objectives, source=source)
        study = Study.open(folder)
        study.update(file, source=source)
        return study

    def update(self, file: StudyFile, *, source: Path | None = None) -> None:
        """Take over a larger budget, another plateau or parallelism, and other early stopping.

        Raises:
            UsageError: anything else changed, or the budget shrank.
        """
        if file == self.file:
            return
        check_update(self.file, file)
        with self.guarded():
            self.ledger.set_file(file.to_json())
            _write_copy(self.folder / STUDY_COPY, file, source)
        self.file = file

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The sole right to run the study, given back by the system however the process ends; may be nested.

        Raises:
            StudyError: another process runs it.
        """
        if self._is_locked:
            yield
            return
        with (self.folder / LOCK_FILE).open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StudyError(
                    f"study {self.file.name} is being run by another process; stop that one first"
                ) from error
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn the database's errors into ``StudyError``."""
        with _explained(self.folder / DATABASE_FILE):
            yield

    def close(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def trials(self) -> list[TrialRecord]:
        """All trials, by number."""
        with self.guarded():
            candidates, attempts, results = self.ledger.candidates(), self.ledger.attempts(), self.ledger.results()
        last = {attempt.trial: attempt for attempt in attempts if attempt.stage != FINAL_STAGE}
        notes: dict[int, dict[str, Json]] = {}
        for result in results:
            notes.setdefault(result.trial, {})[result.stage] = result.notes
        return [
            _record(candidate, last.get(candidate.trial), notes.get(candidate.trial, {})) for candidate in candidates
        ]

    def stage_attempts(self) -> list[StageAttempt]:
        with self.guarded():
            return self.ledger.attempts()

    def events(self) -> list[tuple[str, Event]]:
        """What happened, with UTC stamps: starts, endings, faults, changes of the front."""
        with self.guarded():
            return self.ledger.events()

    def front(self) -> list[TrialRecord]:
        """The complete trials that no other dominates, by number."""
        complete = [trial for trial in self.trials() if trial.state == Ending.COMPLETE.value]
        if not complete:
            return []
        mask = non_dominated(np.array([self.vector(trial) for trial in complete]))
        return [trial for trial, is_best in zip(complete, mask, strict=True) if is_best]

    def vector(self, trial: TrialRecord) -> Any:
        """The objectives (m,) of a complete trial in natural units."""
        assert trial.outcome is not None
        return self.objectives.vector(trial.outcome.values)

    def hypervolume_history(self) -> list[tuple[int, float]]:
        """After each told trial: how many were told, and the normalised hypervolume of all so far."""
        told = sorted((trial for trial in self.trials() if trial.told is not None), key=lambda trial: trial.told or 0)
        history: list[tuple[int, float]] = []
        points: list[Any] = []
        value = 0.0
        for n_told, trial in enumerate(told, start=1):
            if trial.state == Ending.COMPLETE.value:
                points.append(self.objectives.normalised(self.vector(trial)))
                value = hypervolume(np.array(points), self.objectives.reference)
            history.append((n_told, value))
        return history

    def test_results(self) -> dict[int, Value]:
        """The error on the test split of the trials it was measured for."""
        with self.guarded():
            results = self.ledger.results()
        return {
            result.trial: result.values[FINAL_VALUE]
            for result in results
            if result.stage == FINAL_STAGE and FINAL_VALUE in result.values
        }

    def results_of(self, trial: int) -> list[StageResult]:
        """The results that count of one trial, in the order they came."""
        with self.guarded():
            return self.ledger.results(trial)

    def recording(self, sink: EventSink, now_iso: Callable[[], str]) -> EventSink:
        """``sink``, with the start of each stage also noted in the database, for whoever looks from outside."""
        return _Recording(self, sink, now_iso)


def _assemble(folder: Path, ledger: Ledger, study: optuna.Study, storage: RDBStorage) -> Study:
    row = ledger.study()
    assert row is not None
    return Study(
        folder=folder,
        file=StudyFile.from_json(row.file),
        study_id=row.study_id,
        objectives=_objectives_from_json(row.objectives),
        optuna=study,
        ledger=ledger,
        created_at=row.created_at,
        _storage=storage,
    )


@dataclass
class _Recording:
    study: Study
    inner: EventSink
    now_iso: Callable[[], str]

    def emit(self, event: Event) -> None:
        if event.name == "stage_started":
            about = event.fields
            with self.study.guarded():
                self.study.ledger.record_start(
                    about["trial"], about["stage"], about["attempt"], about["worker"], self.now_iso()
                )
        self.inner.emit(event)


def check_update(old: StudyFile, new: StudyFile) -> None:
    """Make sure that only what may change did: parallelism, early stopping, plateau, and the budget upwards.

    Raises:
        UsageError: names each field with its old and new value.
    """
    before, after = _flat(old.to_json()), _flat(new.to_json())
    absent = "absent"
    names = sorted(before.keys() | after.keys())
    changed = [name for name in names if before.get(name, absent) != after.get(name, absent)]
    changed = [name for name in changed if not name.startswith(("parallelism.", "early_stopping.", "budget.plateau"))]
    refused = [name for name in changed if not name.startswith("budget.")]
    shrunk = [name for name in changed if name not in refused and not _is_raised(before[name], after[name])]
    lines = [f"  {name}: was {before.get(name, absent)!r}, now {after.get(name, absent)!r}" for name in refused]
    lines += [f"  {name}: was {before[name]!r}, now {after[name]!r}; it may only be raised" for name in shrunk]
    if lines:
        raise UsageError(
            f"study {old.name} has begun, and its file has changed since:\n" + "\n".join(lines) + "\n"
            "Only a larger budget, another plateau or parallelism and other early stopping can be taken over. Undo the "
            "change, or give the study a new name."
        )


def _is_raised(before: float | None, after: float | None) -> bool:
    return after is None or (before is not None and after >= before)


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _record(candidate: CandidateRow, last: StageAttempt | None, notes: Mapping[str, Json]) -> TrialRecord:
    state = candidate.state
    if state == "open":
        state = "running" if last is not None else "proposed"
    return TrialRecord(
        number=candidate.trial,
        params=candidate.params,
        state=state,
        stage=last.stage if last else "",
        attempt=last.attempt if last else 0,
        outcome=candidate.outcome,
        started_at=candidate.started_at,
        ended_at=candidate.ended_at,
        notes=notes,
        worker=last.worker if last else "",
        seed=candidate.seed,
        told=candidate.told,
    )


def _objectives_to_json(objectives: Objectives) -> Json:
    return {"names": objectives.names, "units": objectives.units, "limits": objectives.limits}


def _objectives_from_json(data: Json) -> Objectives:
    return Objectives(names=tuple(data["names"]), units=tuple(data["units"]), limits=tuple(data["limits"]))


def _write_copy(path: Path, file: StudyFile, source: Path | None) -> None:
    if source is not None:
        path.write_bytes(source.read_bytes())
    else:
        path.write_text(yaml.safe_dump(file.to_json(), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _open_storage(database: Path) -> RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # its own chatter about each trial
    with closing(sqlite3.connect(database, timeout=_BUSY_TIMEOUT_S)) as connection:
        connection.execute(
            "PRAGMA journal_mode=WAL"
        )  # kept in the file; readers and the writer do not block each other
    storage = RDBStorage(f"sqlite:///{database}", engine_kwargs={"connect_args": {"timeout": _BUSY_TIMEOUT_S}})
    sa.event.listen(storage.engine, "connect", _flush_every_commit)
    storage.engine.dispose()  # connections made before the listener
    return storage


def _flush_every_commit(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA synchronous=FULL")


def _is_complete(database: Path) -> bool:
    """Whether the ledger's row exists; anything unreadable counts as complete, so that opening it explains."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return bool(connection.execute("SELECT count(*) FROM edgefront_study").fetchone()[0])
    except sqlite3.OperationalError as error:
        return "no such table" not in str(error)
    except sqlite3.DatabaseError:
        return True


def _check_database(database: Path, *, is_new: bool) -> None:
    """
    Raises:
        StudyError: not a database, damaged, or another program's.
    """
    if not database.exists():
        return
    with closing(sqlite3.connect(database, timeout=_BUSY_TIMEOUT_S)) as connection:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    known = {"studies", "trials", "edgefront_study"}
    if tables and not tables & known:
        raise StudyError(
            f"{database} is the database of another program (tables {', '.join(sorted(tables)[:5])}); "
            "choose another folder or study name"
        )
    if not is_new and "edgefront_study" not in tables:
        raise StudyError(
            f"{database} holds no Edgefront study: its creation was interrupted, or Optuna alone wrote it. "
            "Delete it, or move it away, and run the study file again."
        )


@contextmanager
def _explained(database: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.DatabaseError, DBAPIError, StorageInternalError) as error:
        cause = str(getattr(error, "orig", None) or error.__cause__ or error).splitlines()[0]
        if "disk is full" in cause or "disk I/O" in cause:
            advice = "Free some space and run the same command again; nothing that was recorded is lost."
        elif "locked" in cause:
            advice = "Another program holds it; end that one and run the same command again."
        else:
            advice = "It is damaged or no database: restore it from a copy, or move it away to begin the study anew."
        raise StudyError(f"{database}: {cause}. {advice}") from error
