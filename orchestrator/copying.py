"""A study's tables from one database into another: a snapshot into a file, and a file's into PostgreSQL."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa
from optuna.storages._rdb import models  # Optuna's tables have no public name
from sqlalchemy.engine import Connection, Engine

from orchestrator.database import BUSY_TIMEOUT_S, Database, SqliteDatabase
from orchestrator.errors import StudyError
from orchestrator.study import Study
from orchestrator.studyfile import StudyFile
from orchestrator.tables import HOLDER, NO_HOLDER, TABLES

_ROWS_AT_ONCE = 2000


def snapshot(database: Database, engine: Engine, path: Path) -> None:
    """Write the study's tables as they are at one moment into a new SQLite file, while the study goes on."""
    if isinstance(database, SqliteDatabase):
        _copy_file(database.path, path)
    else:
        with _new_file(path) as copy, _frozen(engine) as source:
            copy_rows(source, copy)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")  # one file, with nothing beside it
        connection.execute("UPDATE edgefront_holder SET token = '', deadline = 0")
        connection.commit()


def copy_rows(source: Connection, target: Connection) -> None:
    """Replace all rows of the study's tables in ``target`` by those of ``source``. The caller commits.

    Raises:
        StudyError: a table has fewer or more rows afterwards than it was read.
    """
    for table in reversed(_tables()):
        target.execute(table.delete())
    for table in _tables():
        n_read = 0
        rows = source.execution_options(stream_results=True).execute(sa.select(table)).mappings()
        for part in rows.partitions(_ROWS_AT_ONCE):
            target.execute(table.insert(), [dict(row) for row in part])
            n_read += len(part)
        n_written = target.scalar(sa.select(sa.func.count()).select_from(table))
        if n_written != n_read:
            raise StudyError(f"table {table.name}: {n_read} rows were read and {n_written} written; nothing was kept")
    target.execute(HOLDER.update().values(**NO_HOLDER))
    if target.dialect.name == "postgresql":
        _count_on(target)


def rename(study: Study, name: str) -> str:
    """Make it another study called ``name``; nobody else may have it open, and it is to be opened again.

    Returns:
        Its new id.
    """
    file = StudyFile.from_json({**study.file.to_json(), "name": name})
    study_id = str(uuid.uuid4())
    column = models.StudyModel.study_name
    with study.guarded():
        with study.engine.begin() as connection:
            connection.execute(sa.update(models.StudyModel).where(column == study.file.name).values(study_name=name))
        study.ledger.rename(name, study_id, file.to_json())
    return study_id


def make_tables(engine: Engine) -> None:
    """Make those of the ledger that are not there; Optuna's are made when its storage is opened."""
    TABLES.create_all(engine)


def _tables() -> list[sa.Table]:
    """Optuna's and ours, each after those it refers to. The version that Optuna's migrations keep is none of them: it
    is that of the Optuna that made the tables, on either side."""
    return [*models.BaseModel.metadata.sorted_tables, *TABLES.sorted_tables]


def _copy_file(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source, timeout=BUSY_TIMEOUT_S)) as reading, closing(sqlite3.connect(target)) as copy:
        reading.backup(copy)  # all pages in one read transaction: a writer goes on beside it


@contextmanager
def _new_file(path: Path) -> Iterator[Connection]:
    """A connection to a new file with the tables in it, committed at the end."""
    storage = SqliteDatabase(folder=path.parent).storage_of(path)
    try:
        make_tables(storage.engine)
        storage.remove_session()
        with storage.engine.begin() as connection:
            yield connection
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def _frozen(engine: Engine) -> Iterator[Connection]:
    """One transaction that goes on seeing the database as it was when it first read."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
        yield connection


def _count_on(connection: Connection) -> None:
    """Rows that are inserted later get numbers after those that were copied."""
    for table in _tables():
        column = table.autoincrement_column
        if column is None:
            continue
        sequence = connection.scalar(sa.func.pg_get_serial_sequence(table.name, column.name))
        last = connection.scalar(sa.select(sa.func.max(column)))
        if sequence is not None and last is not None:
            connection.execute(sa.select(sa.func.setval(sequence, last)))
