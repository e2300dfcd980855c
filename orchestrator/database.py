"""The study's database file: opened with the right settings, checked for damage, its errors put in words."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import DBAPIError

from orchestrator.errors import StudyError

BUSY_TIMEOUT_S = 60
_LONGEST_PATH = 500  # 512 with what SQLite appends for its journals


def open_storage(database: Path) -> RDBStorage:
    """Optuna's storage on the file, with a write-ahead log and every commit flushed to the disk."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # its own chatter about each trial
    with closing(sqlite3.connect(database, timeout=BUSY_TIMEOUT_S)) as connection:
        connection.execute(
            "PRAGMA journal_mode=WAL"
        )  # kept in the file; readers and the writer do not block each other
    storage = RDBStorage(f"sqlite:///{database}", engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT_S}})
    sa.event.listen(storage.engine, "connect", _flush_every_commit)
    storage.engine.dispose()  # connections made before the listener
    return storage


def _flush_every_commit(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA synchronous=FULL")


def is_complete(database: Path) -> bool:
    """Whether the ledger's row exists; anything unreadable counts as complete, so that opening it explains."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return bool(connection.execute("SELECT count(*) FROM edgefront_study").fetchone()[0])
    except sqlite3.OperationalError as error:
        return "no such table" not in str(error)
    except sqlite3.DatabaseError:
        return True


def check_database(database: Path, *, is_new: bool) -> None:
    """Look for damage; a file that does not exist has none.

    Raises:
        StudyError: not a database, damaged, or another program's.
    """
    if not database.exists():
        return
    with closing(sqlite3.connect(database, timeout=BUSY_TIMEOUT_S)) as connection:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if is_new and not tables and (database.parent / "artifacts").exists():
        raise StudyError(
            f"{database} is empty, but {database.parent} holds the artifacts of a study: its database was lost. "
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


@contextmanager
def explained(database: Path) -> Iterator[None]:
    """Turn the errors of SQLite, SQLAlchemy and Optuna into ``StudyError`` with the file and what to do."""
    try:
        yield
    except (sqlite3.DatabaseError, DBAPIError, StorageInternalError) as error:
        cause = str(getattr(error, "orig", None) or error.__cause__ or error).splitlines()[0]
        advice = _advice(cause, database)
        raise StudyError(f"{database}: {cause}. {advice}") from error


def _advice(cause: str, database: Path) -> str:
    if "disk is full" in cause or "disk I/O" in cause:
        return "Free some space and run the same command again; nothing that was recorded is lost."
    if "locked" in cause:
        return "Another program holds it; end that one and run the same command again."
    n_bytes = len(os.fsencode(database.absolute()))
    if n_bytes > _LONGEST_PATH and "unable to open" in cause:
        return f"Its path is {n_bytes} bytes long and SQLite takes about {_LONGEST_PATH}: choose a shorter --studies."
    if database.is_file() and not (os.access(database.parent, os.W_OK) and os.access(database, os.W_OK)):
        return (
            f"The folder {database.parent} and what is in it must be writable, even to look at a study; make them so, "
            "or copy the folder to where you may write."
        )
    return "It is damaged or no database: restore it from a copy, or move it away to begin the study anew."
