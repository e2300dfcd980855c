"""The list of a lab's studies: what was submitted, how it stands, and which orchestrator runs it.

One SQLAlchemy database: ``lab.db`` in the studies' folder, or the one of ``EDGEFRONT_DATABASE``. Every method is one
transaction.

A study is *held* by at most one orchestrator: its row names the owner and a token that grows each time it changes
hands. Who takes it over names the owner and the token that it has seen, so of two that try one succeeds. Orchestrators
show that they live by a number that grows; others watch it by their own clock, so clocks need not agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row
from sqlalchemy.exc import IntegrityError

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.labtables import EDITS, ORCHESTRATORS, STUDIES, explained, open_engine, prepare
from orchestrator.location import Location, database_url, location_of, unknown_text
from orchestrator.records import Json

REGISTRY_FILE = "lab.db"

SUBMITTED, RUNNING, PAUSED = "submitted", "running", "paused"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
STATES = (SUBMITTED, RUNNING, PAUSED, FINISHED, STOPPED, FAILED)
# What is left to an orchestrator: to run, or to bring to the state that is wanted.
OPEN_STATES = (SUBMITTED, RUNNING)
ENDED_STATES = (FINISHED, STOPPED)
# What its users want of a study.
RUN, PAUSE, STOP = "run", "pause", "stop"


class LeaseLost(OrchestratorError):
    """Another orchestrator runs the study by now; whatever this process still knows of it is out of date."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What is recorded of a study when it is submitted. ``file`` is the study file with its calibration read in
    (``StudyFile.to_json``), ``source_text`` the file as it was written, ``source_folder`` where it lay: the user's own
    data and networks are looked for there. ``sources`` are the fingerprints of what the study reads from outside."""

    name: str
    folder: str
    file: Json
    source_text: str
    source_folder: str
    sources: Mapping[str, str]
    submitter: str
    submitted_at: str
    priority: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """How far a study is: trials told of ``budget``, and its front."""

    told: int = 0
    budget: int = 0
    hypervolume: float = 0.0
    front_size: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One study of the list. ``order`` grows with the time of submission; ``owner`` is empty where nobody runs it;
    ``could_use`` is how many trials it could have under way, None where nobody has said so yet."""

    order: int
    submission: Submission
    state: str
    wanted: str
    reason: str
    changed_at: str
    owner: str
    token: int
    could_use: int | None
    reached: Reached = field(default_factory=Reached)

    @property
    def name(self) -> str:
        return self.submission.name

    @property
    def priority(self) -> int:
        return self.submission.priority

    def to_json(self) -> Json:
        """What ``edgefront status --json`` prints; neither the file nor its secrets are in it."""
        return {
            "name": self.name,
            "state": self.state,
            "wanted": self.wanted,
            "reason": self.reason,
            "priority": self.priority,
            "submitter": self.submission.submitter,
            "submitted_at": self.submission.submitted_at,
            "changed_at": self.changed_at,
            "folder": self.submission.folder,
            "owner": self.owner,
            "told": self.reached.told,
            "budget": self.reached.budget,
            "hypervolume": self.reached.hypervolume,
            "front_size": self.reached.front_size,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Orchestrator:
    """A process that runs studies: ``born`` is its start (s since the epoch), ``beat`` grows while it lives."""

    owner: str
    host: str
    pid: int
    born: float
    beat: int = 0
    seen_at: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditRow:
    """A change that a user asked for (``StudyEdit.to_json``), and the answer once it is no longer pending."""

    number: int
    edit: Json
    by: str
    at: str
    is_pending: bool
    answer: str


def registry_url(studies: Path, database: str | None = None) -> str:
    """The address of the list: the ``database`` given, else that of ``EDGEFRONT_DATABASE``, else ``lab.db`` in the
    studies' folder.

    Raises:
        UsageError: it is no address of a PostgreSQL database.
    """
    return database_url(database) or f"sqlite:///{(studies / REGISTRY_FILE).absolute()}"


def has_registry(studies: Path, database: str | None = None) -> bool:
    """Whether anything may have been submitted here.

    Raises:
        UsageError: ``database``, or ``EDGEFRONT_DATABASE``, is no address of a PostgreSQL database.
    """
    return bool(database_url(database)) or (studies / REGISTRY_FILE).exists()


class Registry:
    """The list at ``url`` (SQLAlchemy's spelling), begun if need be. Any number of processes may use it at once.

    Raises (all of it):
        StudyError: the database cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = open_engine(url)
        with self._explained():
            prepare(self._engine)

    def close(self) -> None:
        self._engine.dispose()

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self._engine)

    def place_of(self, folder: Path) -> Location:
        """Where the study of a folder is, or is to be begun: its tables are in the list's PostgreSQL, or else there."""
        return location_of(folder.parent, folder.name, "" if self.url.startswith("sqlite") else self.url)

    def place(self, entry: Entry) -> Location:
        """Where a submitted study is, or is to be begun."""
        return self.place_of(Path(entry.submission.folder))

    # -- users ---------------------------------------------------------------------------------------------------

    def submit(self, submission: Submission, reached: Reached | None = None) -> None:
        """Put a study on the list; ``reached`` is how far it is, where it has begun.

        Raises:
            UsageError: a study of this name is on the list.
        """
        values = {
            "name": submission.name,
            "folder": submission.folder,
            "file": json.dumps(submission.file),
            "source_text": submission.source_text,
            "source_folder": submission.source_folder,
            "sources": json.dumps(dict(submission.sources)),
            "submitter": submission.submitter,
            "submitted_at": submission.submitted_at,
            "priority": submission.priority,
            "state": SUBMITTED,
            "wanted": RUN,
            "reason": "",
            "changed_at": submission.submitted_at,
            "owner": "",
            "token": 0,
            "told": reached.told if reached else 0,
            "budget": int(submission.file["budget"]["trials"]),
            "hypervolume": reached.hypervolume if reached else 0.0,
            "front_size": reached.front_size if reached else 0,
        }
        with self._explained():
            try:
                with self._engine.begin() as connection:
                    connection.execute(STUDIES.insert().values(**values))
            except IntegrityError as error:
                raise UsageError(f"study {submission.name} is submitted already") from error

    def entries(self, *, is_ended: bool | None = None) -> list[Entry]:
        """The studies in the order of their submission: all, or those finished or stopped, or all but those."""
        query = sa.select(STUDIES).order_by(STUDIES.c.id)
        if is_ended is not None:
            ended = STUDIES.c.state.in_(ENDED_STATES)
            query = query.where(ended if is_ended else ~ended)
        with self._explained(), self._engine.connect() as connection:
            return [_entry(row) for row in connection.execute(query)]

    def counts(self) -> dict[str, int]:
        """How many studies are in each state; states without any are left out."""
        query = sa.select(STUDIES.c.state, sa.func.count()).group_by(STUDIES.c.state)
        with self._explained(), self._engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def find(self, name: str) -> Entry | None:
        with self._explained(), self._engine.connect() as connection:
            row = connection.execute(sa.select(STUDIES).where(STUDIES.c.name == name)).first()
            return _entry(row) if row is not None else None

    def entry(self, name: str) -> Entry:
        """
        Raises:
            UsageError: nothing of this name was submitted; the text lists what was.
        """
        found = self.find(name)
        if found is None:
            names = [entry.name for entry in self.entries()]
            if not names:
                raise UsageError(f"no study {name!r}: nothing was submitted yet (edgefront submit STUDY.yaml)")
            raise UsageError(unknown_text(name, {"submitted were": names}))
        return found

    def want(self, name: str, wanted: str, at: str) -> None:
        """Note what is wanted of a study; a paused or failed one that is to run is submitted again."""
        values = {"wanted": wanted, "changed_at": at}
        with self._explained(), self._engine.begin() as connection:
            connection.execute(STUDIES.update().where(STUDIES.c.name == name).values(**values))
            free = (STUDIES.c.name == name) & (STUDIES.c.owner == "")
            if wanted == RUN:
                again = free & STUDIES.c.state.in_((PAUSED, FAILED))
                connection.execute(STUDIES.update().where(again).values(state=SUBMITTED, reason=""))
            if wanted == PAUSE:  # nobody runs it: it is paused by not being begun
                waiting = free & STUDIES.c.state.in_(OPEN_STATES)
                connection.execute(STUDIES.update().where(waiting).values(state=PAUSED, reason=""))

    def reopen(self, name: str, at: str) -> None:
        """A finished study is to run again: it was edited."""
        where = (STUDIES.c.name == name) & (STUDIES.c.state == FINISHED)
        with self._explained(), self._engine.begin() as connection:
            values = {"state": SUBMITTED, "wanted": RUN, "reason": "", "changed_at": at, "could_use": None}
            connection.execute(STUDIES.update().where(where).values(**values))

    def set_priority(self, name: str, priority: int) -> None:
        """What is since when stays so: neither its state nor what is wanted changes."""
        with self._explained(), self._engine.begin() as connection:
            connection.execute(STUDIES.update().where(STUDIES.c.name == name).values(priority=priority))

    # -- edits ---------------------------------------------------------------------------------------------------

    def add_edit(self, name: str, edit: Json, by: str, at: str) -> int:
        """Ask for a change; whoever runs the study takes it. Returns its number."""
        values = {"name": name, "edit": json.dumps(edit), "by": by, "at": at, "is_pending": True, "answer": ""}
        with self._explained(), self._engine.begin() as connection:
            added = connection.execute(EDITS.insert().values(**values))
            return int(added.inserted_primary_key[0])  # type: ignore[index]  # an insert of one row has one

    def edits(self, name: str) -> list[EditRow]:
        """All changes ever asked for, the oldest first."""
        query = sa.select(EDITS).where(EDITS.c.name == name).order_by(EDITS.c.id)
        with self._explained(), self._engine.connect() as connection:
            return [_edit(row) for row in connection.execute(query)]

    def edited_names(self) -> set[str]:
        """The studies that a change was asked for of, and not made yet."""
        query = sa.select(EDITS.c.name).where(EDITS.c.is_pending).distinct()
        with self._explained(), self._engine.connect() as connection:
            return set(connection.scalars(query))

    def answer_edit(self, number: int, answer: str) -> None:
        """The change is made, or was refused: ``answer`` says which."""
        with self._explained(), self._engine.begin() as connection:
            where = EDITS.c.id == number
            connection.execute(EDITS.update().where(where).values(is_pending=False, answer=answer))

    # -- orchestrators -------------------------------------------------------------------------------------------

    def beat(self, me: Orchestrator, at: str) -> None:
        """Show that this orchestrator lives."""
        where = ORCHESTRATORS.c.owner == me.owner
        with self._explained(), self._engine.begin() as connection:
            changed = connection.execute(
                ORCHESTRATORS.update().where(where).values(beat=ORCHESTRATORS.c.beat + 1, seen_at=at)
            )
            if not changed.rowcount:
                about = {"host": me.host, "pid": me.pid, "born": me.born, "beat": 1, "seen_at": at}
                connection.execute(ORCHESTRATORS.insert().values(owner=me.owner, **about))

    def orchestrators(self) -> list[Orchestrator]:
        """Those that did not say goodbye, the dead among them."""
        with self._explained(), self._engine.connect() as connection:
            rows = connection.execute(sa.select(ORCHESTRATORS).order_by(ORCHESTRATORS.c.owner))
            return [Orchestrator(**row._mapping) for row in rows]

    def forget(self, owner: str) -> None:
        """This orchestrator is gone, and holds nothing any more."""
        with self._explained(), self._engine.begin() as connection:
            connection.execute(ORCHESTRATORS.delete().where(ORCHESTRATORS.c.owner == owner))

    def take(self, seen: Entry, owner: str, at: str) -> int | None:
        """Make ``owner`` the holder of the study as it was ``seen``; the new token, or None if it has changed hands."""
        where = (
            (STUDIES.c.name == seen.name)
            & (STUDIES.c.owner == seen.owner)
            & (STUDIES.c.token == seen.token)
            & (STUDIES.c.state.in_((*OPEN_STATES, PAUSED, FAILED)))
        )
        values = {"owner": owner, "token": seen.token + 1, "state": RUNNING, "changed_at": at}
        with self._explained(), self._engine.begin() as connection:
            return (
                seen.token + 1 if connection.execute(STUDIES.update().where(where).values(**values)).rowcount else None
            )

    def release(self, name: str, token: int, state: str, reason: str, at: str) -> bool:
        """Give a study back in ``state``; False where it is held by somebody else by now.

        A study that is to be paused or stopped stays so whatever it was given back as, unless it has ended.
        """
        values = {"owner": "", "state": state, "reason": reason, "changed_at": at}
        with self._explained(), self._engine.begin() as connection:
            given = connection.execute(STUDIES.update().where(_is_held(name, token)).values(**values)).rowcount > 0
            waiting = (STUDIES.c.name == name) & (STUDIES.c.owner == "") & (STUDIES.c.state == SUBMITTED)
            paused = waiting & (STUDIES.c.wanted == PAUSE)
            connection.execute(STUDIES.update().where(paused).values(state=PAUSED))
        return given

    def note(self, name: str, token: int, reached: Reached, could_use: int | None, reason: str) -> None:
        """Keep how far the study is; passed over where it is held by somebody else by now."""
        values: dict[str, Any] = {
            "told": reached.told,
            "budget": reached.budget,
            "hypervolume": reached.hypervolume,
            "front_size": reached.front_size,
            "could_use": could_use,
            "reason": reason,
        }
        with self._explained(), self._engine.begin() as connection:
            connection.execute(STUDIES.update().where(_is_held(name, token)).values(**values))

    def check_held(self, name: str, token: int) -> None:
        """
        Raises:
            LeaseLost: the study is held under another token by now, or by nobody.
        """
        query = sa.select(STUDIES.c.token).where(_is_held(name, token) & (STUDIES.c.owner != ""))
        with self._explained(), self._engine.connect() as connection:
            if connection.execute(query).first() is None:
                raise LeaseLost(f"study {name}: another orchestrator has taken it over; this process ends")


def _is_held(name: str, token: int) -> sa.ColumnElement[bool]:
    return (STUDIES.c.name == name) & (STUDIES.c.token == token)


def _entry(row: Row[Any]) -> Entry:
    return Entry(
        order=row.id,
        submission=Submission(
            name=row.name,
            folder=row.folder,
            file=json.loads(row.file),
            source_text=row.source_text,
            source_folder=row.source_folder,
            sources=json.loads(row.sources),
            submitter=row.submitter,
            submitted_at=row.submitted_at,
            priority=row.priority,
        ),
        state=row.state,
        wanted=row.wanted,
        reason=row.reason,
        changed_at=row.changed_at,
        owner=row.owner,
        token=row.token,
        could_use=row.could_use,
        reached=Reached(told=row.told, budget=row.budget, hypervolume=row.hypervolume, front_size=row.front_size),
    )


def _edit(row: Row[Any]) -> EditRow:
    return EditRow(
        number=row.id,
        edit=json.loads(row.edit),
        by=row.by,
        at=row.at,
        is_pending=row.is_pending,
        answer=row.answer,
    )
