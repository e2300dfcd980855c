"""The tables of a lab's list of studies, in SQLite or PostgreSQL: made, opened, and their errors explained."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, IntegrityError

from orchestrator.database import file_error
from orchestrator.errors import StudyError
from orchestrator.postgres import check_url, connect_args, server_error, shown

REGISTRY_VERSION = 1
_BUSY_TIMEOUT_S = 30
_MAKING = 0x65646765  # names the lock of PostgreSQL under which the tables are made
_SUBMIT_AGAIN = "restore it from a copy; or move it away and submit the studies again, which go on where they were."
_tables = sa.MetaData()
VERSIONS = sa.Table("edgefront_lab", _tables, sa.Column("version", sa.Integer, primary_key=True))
STUDIES = sa.Table(
    "edgefront_lab_studies",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(100), nullable=False, unique=True),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("source_text", sa.Text, nullable=False),
    sa.Column("source_folder", sa.Text, nullable=False),
    sa.Column("sources", sa.Text, nullable=False),
    sa.Column("submitter", sa.String(200), nullable=False),
    sa.Column("submitted_at", sa.String(40), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("wanted", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("changed_at", sa.String(40), nullable=False),
    sa.Column("owner", sa.String(200), nullable=False),
    sa.Column("token", sa.Integer, nullable=False),
    sa.Column("could_use", sa.Integer),
    sa.Column("told", sa.Integer, nullable=False),
    sa.Column("budget", sa.Integer, nullable=False),
    sa.Column("hypervolume", sa.Float, nullable=False),
    sa.Column("front_size", sa.Integer, nullable=False),
)
EDITS = sa.Table(
    "edgefront_lab_edits",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("edit", sa.Text, nullable=False),
    sa.Column("by", sa.String(200), nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("is_pending", sa.Boolean, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
)
ORCHESTRATORS = sa.Table(
    "edgefront_lab_orchestrators",
    _tables,
    sa.Column("owner", sa.String(200), primary_key=True),
    sa.Column("host", sa.String(200), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("born", sa.Float, nullable=False),
    sa.Column("beat", sa.Integer, nullable=False),
    sa.Column("seen_at", sa.String(40), nullable=False),
)


def open_engine(url: str) -> Engine:
    """Connections to the list at ``url``; the folder of a file is made.

    Raises:
        UsageError: no address of SQLite or PostgreSQL. The text does not repeat it: it may hold a password.
    """
    address = _address(url)
    if address.get_backend_name() == "postgresql":
        return sa.create_engine(address, pool_pre_ping=True, connect_args=connect_args(address))
    path = address.database
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S})
    sa.event.listen(engine, "connect", _on_connect)
    return engine


def _address(url: str) -> sa.URL:
    return sa.make_url(url) if url.startswith("sqlite:///") else check_url(url)


def _on_connect(connection: Any, _: Any) -> None:
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous=FULL")


def _write_ahead(connection: Any) -> None:
    """Alone of all statements this one does not wait where another connection is at the file, whatever the timeout."""
    deadline = monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or monotonic() > deadline:
                raise
            sleep(0.01)
        else:
            return


def prepare(engine: Engine) -> None:
    """Make the tables that are not there yet, one process after the other.

    Raises:
        StudyError: the list is of another version.
    """
    found = _version(engine) or _make_tables(engine)
    if found != REGISTRY_VERSION:
        raise StudyError(f"the list of studies has version {found}; this program reads {REGISTRY_VERSION}")


def _version(engine: Engine) -> int | None:
    """Of the list that is there; the row is written with the last of its tables."""
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(VERSIONS.name):
            return None
        found: int | None = connection.scalar(sa.select(VERSIONS.c.version))
        return found


def _make_tables(engine: Engine) -> int:
    with engine.begin() as connection:
        is_server = engine.dialect.name == "postgresql"
        lock = f"SELECT pg_advisory_xact_lock({_MAKING})" if is_server else "BEGIN IMMEDIATE"
        connection.exec_driver_sql(lock)
        _tables.create_all(connection)
        found: int | None = connection.scalar(sa.select(VERSIONS.c.version))
        if found is None:
            connection.execute(VERSIONS.insert().values(version=REGISTRY_VERSION))
    return found or REGISTRY_VERSION


@contextmanager
def explained(engine: Engine) -> Iterator[None]:
    """Turn the database's errors into ``StudyError``, which says what to do."""
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as error:
        url = engine.url
        if url.get_backend_name() == "postgresql":
            raise server_error(error, url, f"the list of studies in {shown(url)}") from error
        path = Path(url.database or "")
        raise file_error(error, f"the list of studies, {path}", path, _SUBMIT_AGAIN) from error
