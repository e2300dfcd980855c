"""A study as whoever only looks at it sees it, from the ledger alone: nothing here loads Optuna."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from sqlalchemy.engine import Engine

from orchestrator.arrays import FloatArray
from orchestrator.database import Database
from orchestrator.errors import StudyError
from orchestrator.fronts import Ended, front, vector
from orchestrator.growing import GrowingFront
from orchestrator.ledger import AmountsRow, CandidateRow, Ledger, StageAttempt, StudyRow
from orchestrator.location import Location
from orchestrator.objectives import Objectives
from orchestrator.records import Ending, Event, Json, Outcome, Params, StageResult, Value
from orchestrator.studyfile import StudyFile

STUDY_COPY = "study.yaml"
ARTIFACTS_URL_FILE = "artifacts.url"
FINAL_STAGE = "final"
FINAL_VALUE = "test_error"


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
class StudyReader:
    """An opened study. Reading is safe while another process runs it.

    Raises (all of it):
        StudyError: the database cannot be read; the text names it and what to do.
    """

    folder: Path
    file: StudyFile
    study_id: str
    objectives: Objectives
    ledger: Ledger
    created_at: str
    database: Database
    engine: Engine = field(repr=False)

    @staticmethod
    def open(place: Path | Location) -> StudyReader:
        """Look at the study in a folder or at a location. One that an earlier version wrote must be upgraded first, by
        ``Study.open``: its version is in the error.

        Raises:
            OutdatedStudy: it was written by an earlier version.
        """
        location = located(place)
        database = location.database()
        if not database.exists():
            raise StudyError(f"there is no study in {location.folder}: {database.shown} is missing")
        with database.explained():
            with database.preparing(is_new=False) as connecting:
                engine = connecting.engine()
            ledger = Ledger(engine)
            row = ledger.study()
        if row is None:
            raise StudyError(f"{database.shown} holds no complete study: run the study file again")
        file, objectives = contents_of(row, database)
        return StudyReader(
            folder=location.folder,
            file=file,
            study_id=row.study_id,
            objectives=objectives,
            ledger=ledger,
            created_at=row.created_at,
            database=database,
            engine=engine,
        )

    @property
    def artifacts(self) -> str:
        """Where its artifacts are: a folder by its whole path, or the URL chosen when the study began."""
        return artifacts_of(self.folder)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn the database's errors into ``StudyError``."""
        with self.database.explained():
            yield

    def close(self) -> None:
        self.engine.dispose()

    def trials(self, *, in_full: bool = True) -> list[TrialRecord]:
        """All trials, by number. Those that have ended are without notes, stage and worker unless ``in_full``: notes
        are nine tenths of a large study."""
        with self.guarded():
            candidates, attempts = self.ledger.candidates(), self.ledger.attempts(is_open=not in_full)
            results = self.ledger.results() if in_full else []
        last = {attempt.trial: attempt for attempt in attempts if attempt.stage != FINAL_STAGE}
        notes: dict[int, dict[str, Json]] = {}
        for result in results:
            notes.setdefault(result.trial, {})[result.stage] = result.notes
        return [
            _record(candidate, last.get(candidate.trial), notes.get(candidate.trial, {})) for candidate in candidates
        ]

    def with_notes(self, trials: Sequence[TrialRecord], numbers: Collection[int]) -> list[TrialRecord]:
        """The same trials, those of these numbers with what their stages noted."""
        with self.guarded():
            results = self.ledger.results(trials=sorted(numbers))
        notes: dict[int, dict[str, Json]] = {}
        for result in results:
            notes.setdefault(result.trial, {})[result.stage] = result.notes
        return [replace(trial, notes=notes.get(trial.number, trial.notes)) for trial in trials]

    def some_trials(self, numbers: Sequence[int]) -> list[TrialRecord]:
        """The trials of these numbers, by number, without notes, stage and worker."""
        with self.guarded():
            return [_record(candidate, None, {}) for candidate in self.ledger.some_candidates(numbers)]

    def trials_under_way(self) -> list[TrialRecord]:
        """Those that have not ended, by number, without notes."""
        with self.guarded():
            candidates, attempts = self.ledger.candidates(is_open=True), self.ledger.attempts(is_open=True)
        last = {attempt.trial: attempt for attempt in attempts if attempt.stage != FINAL_STAGE}
        return [_record(candidate, last.get(candidate.trial), {}) for candidate in candidates]

    def amounts(self) -> list[AmountsRow]:
        """Of each trial, by number, the little that fronts and sums are made of; fast for thousands."""
        with self.guarded():
            return list(self.ledger.amounts())

    def stage_attempts(self) -> list[StageAttempt]:
        with self.guarded():
            return self.ledger.attempts()

    def events(self) -> list[tuple[str, Event]]:
        """What happened, with UTC stamps: starts, endings, faults, changes of the front."""
        with self.guarded():
            return self.ledger.events()

    def front(self) -> list[TrialRecord]:
        """The complete trials that no other dominates, by number; with several boards, by their worst values."""
        return self.some_trials([row.number for row in front(self.amounts(), self.objectives)])

    def fronts(self) -> dict[str, list[TrialRecord]]:
        """With several boards: by kind, the complete trials that no other dominates by that board's own values."""
        rows = self.amounts() if self.file.boards else []
        fronts = {kind: front(rows, self.objectives, kind) for kind in self.file.boards or ()}
        return {kind: self.some_trials([row.number for row in members]) for kind, members in fronts.items()}

    def on_any_front(self) -> list[TrialRecord]:
        """The trials of the joint front and of each board's, by number."""
        found = {trial.number: trial for members in (self.front(), *self.fronts().values()) for trial in members}
        return [found[number] for number in sorted(found)]

    def vector(self, trial: TrialRecord) -> FloatArray:
        """The objectives (m,) of a complete trial in natural units."""
        return vector(trial, self.objectives)

    def hypervolume_history(self) -> list[tuple[int, float]]:
        """After each told trial: how many were told, and the normalised hypervolume of all so far."""
        return history_of(self.amounts(), self.objectives)

    def test_results(self) -> dict[int, Value]:
        """The error on the test split of the trials it was measured for."""
        with self.guarded():
            results = self.ledger.results(stage=FINAL_STAGE)
        return {
            result.trial: result.values[FINAL_VALUE]
            for result in results
            if result.stage == FINAL_STAGE and FINAL_VALUE in result.values
        }

    def results_of(self, trial: int) -> list[StageResult]:
        """The results that count of one trial, in the order they came."""
        with self.guarded():
            return self.ledger.results(trial)


def located(place: Path | Location) -> Location:
    """A folder as the location it stands for: with the database in it."""
    return place if isinstance(place, Location) else Location(folder=place, name=place.name)


def artifacts_of(folder: Path) -> str:
    """Where the artifacts of the study in ``folder`` are: a folder by its whole path, or a URL."""
    chosen = folder / ARTIFACTS_URL_FILE
    if chosen.exists():
        return chosen.read_text(encoding="utf-8").strip()
    return str((folder / "artifacts").absolute())


def contents_of(row: StudyRow, database: Database) -> tuple[StudyFile, Objectives]:
    """The study file and the objectives that were fixed when the study began.

    Raises:
        StudyError: they cannot be read.
    """
    try:
        return StudyFile.from_json(row.file), _objectives_from_json(row.objectives)
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"{database.shown}: its study file cannot be read: {error}. It is damaged or written by another "
            "version; restore it from a copy, or move it away to begin the study anew."
        ) from error


class Told(Ended, Protocol):
    """An ended trial with its place in the order of telling."""

    @property
    def told(self) -> int | None: ...


def history_of(trials: Iterable[Told], objectives: Objectives) -> list[tuple[int, float]]:
    """After each told trial: how many were told, and the normalised hypervolume of all so far."""
    told = sorted((trial for trial in trials if trial.told is not None), key=lambda trial: trial.told or 0)
    complete = [trial.state == Ending.COMPLETE.value for trial in told]
    points = [vector(trial, objectives) for trial, is_one in zip(told, complete, strict=True) if is_one]
    growing = GrowingFront(reference=objectives.reference)
    after = iter(growing.add_all(objectives.normalised(np.array(points))) if points else [])
    history, value = [], 0.0
    for n_told, is_one in enumerate(complete, start=1):
        value = next(after) if is_one else value
        history.append((n_told, value))
    return history


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


def _objectives_from_json(data: Json) -> Objectives:
    return Objectives(names=tuple(data["names"]), units=tuple(data["units"]), limits=tuple(data["limits"]))
