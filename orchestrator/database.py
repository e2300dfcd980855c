"""Where a study's tables are: what every kind of database must do, and SQLite, the default, in the study's folder.

A file is opened with the right settings and checked for damage, and its errors are put in words.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from orchestrator.errors import StudyError, UnusableInput
from orchestrator.locks import locked_file
from orchestrator.transactions import DURABLE

DATABASE_FILE = "study.db"
BUSY_TIMEOUT_S = 60
_LONGEST_PATH = 500  # 512 with what SQLite appends for its journals
# Reading all of a larger file takes longer than a look at the study: it is checked when the study is run.
_BEGIN_ANEW = "restore it from a copy, or move it away to begin the study anew."
_CHECKED_AT_ONCE_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Connecting:
    """What SQLAlchemy needs: address, options, and what is to be set on each new connection or transaction."""

    url: str = field(repr=False)
    options: Mapping[str, Any]
    on_connect: Callable[[Any, Any], None] | None = None
    on_begin: Callable[[sa.Connection], None] | None = None

    def engine(self) -> Engine:
        """Connections of one's own, without Optuna, which takes half a second to load."""
        engine = sa.create_engine(self.url, **self.options)
        self.tune(engine)
        return engine

    def tune(self, engine: Engine) -> None:
        """Set what is to be set on every connection of ``engine``; those made before are closed."""
        if self.on_connect is not None:
            sa.event.listen(engine, "connect", self.on_connect)
            engine.dispose()
        if self.on_begin is not None:
            sa.event.listen(engine, "begin", self.on_begin)


class Database(Protocol):
    """The place of one study's tables, Optuna's and ours.

    Raises (``preparing``, and whatever is done inside ``explained``):
        StudyError: it cannot be used; the text names the database, without a password, and what to do.
    """

    @property
    def shown(self) -> str:
        """For people; without a password."""
        ...

    def exists(self) -> bool:
        """Whether a study was begun in it (its creation may have been interrupted)."""
        ...

    def is_complete(self) -> bool:
        """Whether the ledger's row exists; what cannot be read counts as complete, so that opening it explains."""
        ...

    def preparing(self, *, is_new: bool) -> AbstractContextManager[Connecting]:
        """How to connect, once it is checked; what must not be done twice at the same time is done inside. What was
        committed before a commit of the ledger is on the disk with it."""
        ...

    def explained(self) -> AbstractContextManager[None]:
        """Turn the errors of the database, of SQLAlchemy and of Optuna into ``StudyError``."""
        ...

    def locked(self, engine: Engine, name: str) -> AbstractContextManager[None]:
        """The sole right to run the study called ``name``; ``StudyTaken`` where another process has it."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SqliteDatabase:
    """``study.db`` in the study's folder: write-ahead log, every commit of the ledger flushed to the disk."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / DATABASE_FILE

    @property
    def shown(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        return self.path.exists()

    def is_complete(self) -> bool:
        if not self.path.exists():
            return False
        try:
            with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
                return bool(connection.execute("SELECT count(*) FROM edgefront_study").fetchone()[0])
        except sqlite3.OperationalError as error:
            return "no such table" not in str(error)
        except sqlite3.DatabaseError:
            return True

    @contextmanager
    def preparing(self, *, is_new: bool) -> Iterator[Connecting]:
        self._check(is_new=is_new)
        with closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S)) as connection:
            # Kept in the file; readers and the writer do not block each other.
            connection.execute("PRAGMA journal_mode=WAL")
        yield self.connecting

    @property
    def connecting(self) -> Connecting:
        """How to connect to the file, checked or not."""
        options = {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
        return Connecting(url=f"sqlite:///{self.path}", options=options, on_begin=_flush_where_asked)

    def fold(self) -> None:
        """Make it one file, with no log beside it; nobody may have it open."""
        with self.explained(), closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")

    @contextmanager
    def explained(self) -> Iterator[None]:
        try:
            yield
        except database_errors(sqlite3.DatabaseError) as error:
            raise file_error(error, str(self.path), self.path, _BEGIN_ANEW) from error

    @contextmanager
    def locked(self, engine: Engine, name: str) -> Iterator[None]:
        with locked_file(self.folder, name):
            if self.path.exists() and self.path.stat().st_size > _CHECKED_AT_ONCE_BYTES:
                with self.explained(), closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S)) as connection:
                    _check_whole(connection)
            yield

    def _check(self, *, is_new: bool) -> None:
        """Look for damage; a file that does not exist has none.

        Raises:
            StudyError: not a database, damaged, or another program's.
        """
        database = self.path
        if not database.exists():
            return
        with closing(sqlite3.connect(database, timeout=BUSY_TIMEOUT_S)) as connection:
            if database.stat().st_size <= _CHECKED_AT_ONCE_BYTES:
                _check_whole(connection)
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if is_new and not tables and (self.folder / "artifacts").exists():
            raise StudyError(
                f"{database} is empty, but {self.folder} holds the artifacts of a study: its database was lost. "
                "Restore it from a copy, or delete it to begin the study anew."
            )
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


def database_errors(*own: type[Exception]) -> tuple[type[Exception], ...]:
    """What SQLAlchemy and, where it is loaded, Optuna raise when a database does, beside the driver's ``own``."""
    optuna = sys.modules.get("optuna.exceptions")
    return (*own, DBAPIError, *((optuna.StorageInternalError,) if optuna is not None else ()))


def cause_of(error: Exception) -> str:
    """The first line of what the database itself said."""
    cause = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error.__cause__ or error
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def _flush_where_asked(connection: sa.Connection) -> None:
    """The ledger's commits wait for the disk; Optuna's, many a trial, reach it with the ledger's next."""
    level = "FULL" if connection.get_execution_options().get(DURABLE) else "NORMAL"
    cursor = connection.connection.cursor()
    cursor.execute(f"PRAGMA synchronous={level}")
    cursor.close()


def _check_whole(connection: sqlite3.Connection) -> None:
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def file_error(error: Exception, what: str, database: Path, if_damaged: str) -> StudyError:
    """What SQLite says of a file, with what to do about it; ``what`` it is, for people."""
    cause = cause_of(error)
    text = f"{what}: {cause}. {_advice(cause, database, if_damaged)}"
    is_given = not os.access(database.parent, os.W_OK) or (database.is_file() and not os.access(database, os.W_OK))
    is_given |= "readonly" in cause or "unable to open" in cause
    return UnusableInput(text) if is_given else StudyError(text)


def _advice(cause: str, database: Path, if_damaged: str) -> str:
    if "disk is full" in cause or "disk I/O" in cause:
        return "Free some space and run the same command again; nothing that was recorded is lost."
    if "locked" in cause:
        return "Another program holds it; end that one and run the same command again."
    n_bytes = len(os.fsencode(database.absolute()))
    if n_bytes > _LONGEST_PATH and "unable to open" in cause:
        return f"Its path is {n_bytes} bytes long and SQLite takes about {_LONGEST_PATH}: choose a shorter --studies."
    is_writable = os.access(database.parent, os.W_OK) and (not database.is_file() or os.access(database, os.W_OK))
    if not is_writable or "readonly" in cause:
        return (
            f"The folder {database.parent} and what is in it must be writable, even to look at a study; make them so, "
            "or copy the folder to where you may write."
        )
    return f"It is damaged or no database: {if_damaged}"
