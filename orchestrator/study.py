"""A study on disk: its file, its database, its artifacts, in one folder.

``study.yaml``  the study file as it was given
``study.db``    Optuna's tables and the ledger's (SQLite, write-ahead log, every commit flushed to the disk); absent
                where they are in a lab's PostgreSQL
``artifacts/``  weights, networks, firmware, by content (``artifacts.url`` where they are elsewhere)
``logs/``, ``broker/``  what a run needs beside itself
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import optuna
import yaml
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy.engine import Engine

from orchestrator.arrays import FloatArray
from orchestrator.database import DATABASE_FILE, Database
from orchestrator.errors import StudyError
from orchestrator.ledger import Ledger, StageAttempt, StudyRow
from orchestrator.location import Location
from orchestrator.locks import StudyTaken
from orchestrator.objectives import Objectives
from orchestrator.ports import EventSink
from orchestrator.reading import (
    ARTIFACTS_URL_FILE,
    FINAL_STAGE,
    FINAL_VALUE,
    STUDY_COPY,
    StudyReader,
    TrialRecord,
    artifacts_of,
    contents_of,
    located,
)
from orchestrator.records import Event, Json, StageResult, Value
from orchestrator.storage import open_storage
from orchestrator.studychange import check_data, check_update
from orchestrator.studyfile import StudyFile
from orchestrator.tables import LEDGER_VERSION
from orchestrator.upgrade import check_version, upgrade

__all__ = ["DATABASE_FILE", "FINAL_STAGE", "FINAL_VALUE", "STUDY_COPY", "Study", "TrialRecord"]

ARTIFACTS_VARIABLE = "EDGEFRONT_ARTIFACTS"
SOURCES_ATTRIBUTE = "edgefront_sources"


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
    sources: Mapping[str, str] = field(default_factory=dict)
    database: Database
    _storage: RDBStorage = field(repr=False)
    _is_locked: bool = False

    @staticmethod
    def exists(place: Path | Location) -> bool:
        """Whether a study was begun there (its creation may have been interrupted)."""
        return located(place).database().exists()

    @staticmethod
    def create(place: Path | Location, file: StudyFile, objectives: Objectives, *, source: Path | None = None) -> Study:
        """Begin a study; ``place`` is a folder, or a location with the study's name. ``source`` is the file it was read
        from, copied as it is. Finishes an interrupted creation.

        Raises:
            StudyError: the folder or the database holds a study already, or something else's tables.
        """
        location = located(place)
        folder, database = location.folder, location.database()
        folder.mkdir(parents=True, exist_ok=True)
        with database.explained():
            storage = open_storage(database, is_new=True)
            ledger = Ledger(storage.engine)
            if ledger.version() is not None:
                raise StudyError(f"{database.shown} holds a study already; open it, or choose another name")
            _write_copy(folder / STUDY_COPY, file, source)
            directions = [StudyDirection.MINIMIZE] * len(objectives.names)
            _delete_empty(file.name, storage)
            study = optuna.create_study(
                study_name=file.name, storage=storage, directions=directions, load_if_exists=True
            )
            study_id = str(uuid.uuid4())
            choose_artifacts(folder, f"{file.name}-{study_id[:8]}")
            ledger.create(
                StudyRow(
                    study_id=study_id,
                    name=file.name,
                    created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                    file=file.to_json(),
                    objectives=_objectives_to_json(objectives),
                    active_seconds=0.0,
                )
            )
            return _assemble(folder, database, ledger, study, storage)

    @staticmethod
    def open(place: Path | Location) -> Study:
        """Open the study in a folder or at a location; one that an earlier version wrote is upgraded."""
        location = located(place)
        folder, database = location.folder, location.database()
        if not database.exists():
            raise StudyError(f"there is no study in {folder}: {database.shown} is missing")
        folder.mkdir(parents=True, exist_ok=True)  # of a study in PostgreSQL that another host began
        with database.explained():
            storage = open_storage(database, is_new=False)
            ledger = Ledger(storage.engine)
            _upgrade(database, storage, ledger, location.name)
            row = ledger.study()
            if row is None:
                raise StudyError(
                    f"{database.shown} holds no complete study: its creation was interrupted or it is not Edgefront's. "
                    "Delete it, or move it away, and run the study file again."
                )
            study = optuna.load_study(study_name=row.name, storage=storage)
            return _assemble(folder, database, ledger, study, storage)

    @staticmethod
    def open_or_create(
        place: Path | Location, file: StudyFile, objectives: Objectives, *, source: Path | None = None
    ) -> Study:
        """The study in a folder or at a location, begun if need be, with the budget, parallelism and early stopping of
        ``file``.

        A study without a single candidate has not begun: it takes over all of ``file``.

        Raises:
            UsageError: ``file`` differs from the study in anything else; the text names the fields.
        """
        if not located(place).database().is_complete():
            return Study.create(place, file, objectives, source=source)
        study = Study.open(place)
        if study.file == file or study.has_begun:
            study.update(file, source=source)
            return study
        with study.locked(), study.guarded():
            study.ledger.delete()
        study.close()
        return Study.create(place, file, objectives, source=source)

    @property
    def has_begun(self) -> bool:
        """Whether there is a candidate."""
        with self.guarded():
            return self.ledger.has_candidates()

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
    def engine(self) -> Engine:
        """The database's connections."""
        return self._storage.engine

    def take_sources(self, found: Mapping[str, str]) -> list[str]:
        """Fix what the study reads from outside by its fingerprints, or compare with what was fixed; returns notes.

        Other code of a network is taken over, since a fault in it may have been what stopped the study. Other data are
        not: errors on them could not be compared.

        Raises:
            UsageError: the data are others than when the study began.
        """
        before = self.sources
        changed = [name for name, sha256 in found.items() if before.get(name, sha256) != sha256] if before else []
        if changed and self.has_begun:
            check_data(self.file, before, found)
        with self.guarded():
            self.optuna.set_user_attr(SOURCES_ATTRIBUTE, dict(found))
        self.sources = dict(found)
        told = sum(candidate.told is not None for candidate in self.ledger.candidates()) if changed else 0
        if not told:
            return []
        return [
            f"the code of {self.file.network.family} has changed since the study began: the {told} trials told so far "
            "keep the results of the old one"
        ]

    @property
    def artifacts(self) -> str:
        """Where its artifacts are: a folder by its whole path, or the URL chosen when the study began."""
        return artifacts_of(self.folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The sole right to run the study, free again however the process ends; may be nested. See
        :mod:`orchestrator.locks`.

        Raises:
            StudyTaken: another process runs it.
        """
        if self._is_locked:
            yield
            return
        with self.database.locked(self.engine, self.file.name):
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn the database's errors into ``StudyError``; ``DatabaseAway`` where it cannot be reached."""
        with self.database.explained():
            yield

    def close(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def trials(self, *, in_full: bool = True) -> list[TrialRecord]:
        """See :meth:`orchestrator.reading.StudyReader.trials`."""
        return self.reader.trials(in_full=in_full)

    def stage_attempts(self) -> list[StageAttempt]:
        return self.reader.stage_attempts()

    def events(self) -> list[tuple[str, Event]]:
        """What happened, with UTC stamps: starts, endings, faults, changes of the front."""
        return self.reader.events()

    def front(self) -> list[TrialRecord]:
        """The complete trials that no other dominates, by number; with several boards, by their worst values."""
        return self.reader.front()

    def fronts(self) -> dict[str, list[TrialRecord]]:
        """With several boards: by kind, the complete trials that no other dominates by that board's own values."""
        return self.reader.fronts()

    def on_any_front(self) -> list[TrialRecord]:
        """The trials of the joint front and of each board's, by number."""
        return self.reader.on_any_front()

    def vector(self, trial: TrialRecord) -> FloatArray:
        """The objectives (m,) of a complete trial in natural units."""
        return self.reader.vector(trial)

    def hypervolume_history(self) -> list[tuple[int, float]]:
        """After each told trial: how many were told, and the normalised hypervolume of all so far."""
        return self.reader.hypervolume_history()

    def test_results(self) -> dict[int, Value]:
        """The error on the test split of the trials it was measured for."""
        return self.reader.test_results()

    def results_of(self, trial: int) -> list[StageResult]:
        """The results that count of one trial, in the order they came."""
        return self.reader.results_of(trial)

    @property
    def reader(self) -> StudyReader:
        """The part of it that only looks."""
        return StudyReader(
            folder=self.folder,
            file=self.file,
            study_id=self.study_id,
            objectives=self.objectives,
            ledger=self.ledger,
            created_at=self.created_at,
            database=self.database,
            engine=self.engine,
        )

    def recording(self, sink: EventSink, now_iso: Callable[[], str]) -> EventSink:
        """``sink``, with the start of each stage noted in the ledger's next transaction, for whoever looks on."""
        return _Recording(self, sink, now_iso)


def _upgrade(database: Database, storage: RDBStorage, ledger: Ledger, name: str) -> None:
    version = ledger.version()
    if version is None or version == LEDGER_VERSION:
        return
    check_version(version)
    try:
        with database.locked(storage.engine, name):
            upgrade(storage.engine, version)
    except StudyTaken as error:
        raise StudyTaken(
            f"{database.shown} is of version {version} and must be upgraded, but {error}; then try again", error.left_s
        ) from error


def _assemble(folder: Path, database: Database, ledger: Ledger, study: optuna.Study, storage: RDBStorage) -> Study:
    row = ledger.study()
    assert row is not None
    file, objectives = contents_of(row, database)
    return Study(
        folder=folder,
        file=file,
        study_id=row.study_id,
        objectives=objectives,
        sources=study.user_attrs.get(SOURCES_ATTRIBUTE, {}),
        optuna=study,
        ledger=ledger,
        created_at=row.created_at,
        database=database,
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
            self.study.ledger.note_start(
                about["trial"], about["stage"], about["attempt"], about["worker"], self.now_iso()
            )
        self.inner.emit(event)


def _delete_empty(name: str, storage: RDBStorage) -> None:
    """Remove what a creation left in Optuna's tables that was interrupted: it may be of other objectives."""
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return
    if not study.get_trials(deepcopy=False):
        optuna.delete_study(study_name=name, storage=storage)


def _objectives_to_json(objectives: Objectives) -> Json:
    return {"names": objectives.names, "units": objectives.units, "limits": objectives.limits}


def choose_artifacts(folder: Path, name: str) -> None:
    """Fix for good where the study's artifacts go, if not into its folder: below ``EDGEFRONT_ARTIFACTS``."""
    base = os.environ.get(ARTIFACTS_VARIABLE)
    (folder / ARTIFACTS_URL_FILE).unlink(missing_ok=True)
    if base:
        (folder / ARTIFACTS_URL_FILE).write_text(f"{base.rstrip('/')}/{name}\n", encoding="utf-8")


def _write_copy(path: Path, file: StudyFile, source: Path | None) -> None:
    if source is not None:
        path.write_bytes(source.read_bytes())
    else:
        path.write_text(yaml.safe_dump(file.to_json(), sort_keys=False, allow_unicode=True), encoding="utf-8")
