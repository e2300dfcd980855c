"""Studies in a lab's PostgreSQL: one schema a study, so that Optuna's tables and ours are what they are in a file.

A server that goes away for a moment is waited for by whoever runs a study; whoever only looks is told at once.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from orchestrator.database import Connecting, cause_of, database_errors
from orchestrator.errors import StudyError, UnusableInput, UsageError
from orchestrator.extras import require
from orchestrator.locks import leased, locked_file

DATABASE_VARIABLE = "EDGEFRONT_DATABASE"
PATIENCE_S = 60.0
_PREFIX = "edgefront_"
_PLAIN = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
_LONGEST_PLAIN = 40  # PostgreSQL cuts names after 63 bytes without a word
_RETRY_S = 0.5
# A host that vanished is noticed after half a minute on either side of a connection, not after two hours.
_CONNECT_ARGS: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "edgefront",
}
_SETTINGS = {
    "synchronous_commit": "on",  # what is committed has reached the disk, whatever the server's default is
    "timezone": "UTC",
    "lock_timeout": "60s",
    "idle_in_transaction_session_timeout": "10min",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
# SQLSTATE classes and codes of a server that is going, gone or not there yet.
_AWAY = ("08", "57P01", "57P02", "57P03")
_REFUSALS = ("authentication failed", "does not exist", "pg_hba.conf", "no password supplied", "permission denied")


class DatabaseAway(StudyError):
    """The connection to the database broke (``was_connected``), or none could be opened for as long as is waited."""

    def __init__(self, text: str, *, was_connected: bool = False) -> None:
        super().__init__(text)
        self.was_connected = was_connected


def check_url(text: str, *, where: str = DATABASE_VARIABLE) -> URL:
    """The address of a PostgreSQL database.

    Raises:
        UsageError: it is none. The text does not repeat the address, which may hold a password.
        MissingExtra: the driver is not installed.
    """
    allowed = "write postgresql://USER:PASSWORD@HOST/DATABASE"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise UsageError(f"{where}: found no address of a database: {_wrong_part(text)}; {allowed}") from None
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise UsageError(f"{where}: found an address of {url.drivername}; allowed is PostgreSQL: {allowed}")
    if not url.database:
        raise UsageError(f"{where}: found an address without the name of a database; {allowed}")
    require("postgresql")
    return url.set(drivername="postgresql+psycopg")


def _wrong_part(text: str) -> str:
    if "://" not in text:
        return "it does not begin with postgresql://"
    try:
        urlsplit(text).port  # noqa: B018 - reading it is the test
    except ValueError:
        return "its port is no number from 0 to 65535"
    return "it cannot be taken apart"


def schema_of(name: str) -> str:
    """The schema of the study called ``name``: like it where that is a plain name, else with a hash that tells apart
    what the plain name does not."""
    if _PLAIN.fullmatch(name) and len(name) <= _LONGEST_PLAIN:
        return _PREFIX + name
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:_LONGEST_PLAIN].strip("_")
    return f"{_PREFIX}{plain}__{hashlib.sha256(name.encode()).hexdigest()[:10]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresDatabase:
    """The schema of one study. ``folder`` is where its logs and its report are, on this host."""

    url: URL = field(repr=False)
    name: str
    folder: Path

    @property
    def schema(self) -> str:
        return schema_of(self.name)

    @property
    def shown(self) -> str:
        return f"{shown(self.url)}, schema {self.schema}"

    def exists(self) -> bool:
        with self.explained(), connected(self.url) as connection:
            return self._count(connection, "information_schema.tables WHERE table_schema = :schema") > 0

    def is_complete(self) -> bool:
        with self.explained(), connected(self.url) as connection:
            where = "information_schema.tables WHERE table_schema = :schema AND table_name = 'edgefront_study'"
            return self._count(connection, where) > 0 and self._count(connection, f"{self.schema}.edgefront_study") > 0

    @contextmanager
    def preparing(self, *, is_new: bool) -> Iterator[Connecting]:
        if not is_new and not self.is_complete():
            raise StudyError(
                f"{self.shown} holds no complete study: there is none, or its creation was interrupted. Run the study "
                "file again."
            )
        with self.explained(), connected(self.url) as connection:
            # Two that create the same study would trip over each other's tables.
            connection.execute(
                sa.text("SELECT pg_advisory_lock(hashtextextended(:schema, 0))"), {"schema": self.schema}
            )
            if is_new:
                self._make_schema(connection)
            yield Connecting(
                url=self.url.render_as_string(hide_password=False), options=_engine_kwargs(self.url, self.schema)
            )

    @contextmanager
    def explained(self) -> Iterator[None]:
        with _explained(self.url, self.shown, self.schema):
            yield

    @contextmanager
    def locked(self, engine: Engine, name: str) -> Iterator[None]:
        """The lease in the database against other hosts, the file's lock against others that share the folder."""
        with ExitStack() as stack:
            self.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_file(self.folder, name))
            with self.explained():
                stack.enter_context(leased(engine, name))
            stack.enter_context(_patient(engine))
            yield

    def _make_schema(self, connection: sa.Connection) -> None:
        # Asked first: whoever may not create schemas can be given one.
        if not self._count(connection, "information_schema.schemata WHERE schema_name = :schema"):
            connection.execute(sa.text(f"CREATE SCHEMA {self.schema}"))
            connection.commit()

    def _count(self, connection: sa.Connection, what: str) -> int:
        values = {"schema": self.schema} if ":schema" in what else {}
        return int(connection.execute(sa.text(f"SELECT count(*) FROM {what}"), values).scalar_one())


def shown(url: URL) -> str:
    """The address for people, without password and options."""
    host = url.host or url.query.get("host", "")
    return f"PostgreSQL {host if isinstance(host, str) else ','.join(host)}/{url.database}"


def names_there(url: URL) -> list[str]:
    """The studies in a database, sorted.

    Raises:
        StudyError: it cannot be read.
    """
    with _explained(url, shown(url), f"{_PREFIX}NAME"), connected(url) as connection:
        query = sa.text("SELECT table_schema FROM information_schema.tables WHERE table_name = 'edgefront_study'")
        schemas = [schema for schema in connection.execute(query).scalars() if schema.startswith(_PREFIX)]
        names = [_name_in(connection, schema) for schema in schemas if re.fullmatch(r"[a-z0-9_]+", schema)]
    return sorted(name for name in names if name is not None)


def _name_in(connection: sa.Connection, schema: str) -> str | None:
    return connection.execute(sa.text(f"SELECT name FROM {schema}.edgefront_study")).scalar_one_or_none()


@contextmanager
def connected(url: URL, schema: str = "") -> Iterator[sa.Connection]:
    """One connection, closed afterwards."""
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=connect_args(url, schema))
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def _explained(url: URL, what: str, schema: str) -> Iterator[None]:
    try:
        yield
    except database_errors() as error:
        raise server_error(error, url, what, schema) from error


def server_error(error: Exception, url: URL, what: str, schema: str = "") -> StudyError:
    """What the server says, with what to do about it; ``what`` was asked for, for people."""
    cause = cause_of(error)
    text = f"{what}: {cause.rstrip('.')}. {_advice(error, cause, url, schema)}"
    if is_away(error):
        return DatabaseAway(text, was_connected=was_connected(error))
    return UnusableInput(text) if any(refusal in cause for refusal in _REFUSALS) else StudyError(text)


def _advice(error: Exception, cause: str, url: URL, schema: str) -> str:
    state = _state(error)
    if "permission denied" in cause:
        user = url.username or "USER"
        return f"Let its user do it: GRANT CREATE ON DATABASE {url.database} TO {user}, or " + (
            f"CREATE SCHEMA {schema} AUTHORIZATION {user}." if schema else f"CREATE ON SCHEMA public TO {user}."
        )
    if any(refusal in cause for refusal in _REFUSALS):
        return f"Correct {DATABASE_VARIABLE} (or --database), or the server's users and pg_hba.conf."
    if state == "53100":
        return "Free some space on its disk and run the same command again; nothing that was recorded is lost."
    if state == "53300":
        return "Raise its max_connections, or end something else."
    if is_away(error):
        return "Start it, or correct the address; nothing is lost, the same command goes on when it is back."
    return "Restore the study from a backup if this stays; docs/storage.md says how."


def is_away(error: BaseException | None) -> bool:
    """Whether the database could not be reached, as against refusing what was asked of it."""
    while error is not None:
        if isinstance(error, DBAPIError):
            cause, state = str(error.orig), _state(error)
            is_refusal = any(refusal in cause for refusal in _REFUSALS)
            is_lost = error.connection_invalidated or (not state and isinstance(error, sa.exc.OperationalError))
            return not is_refusal and (is_lost or state.startswith(_AWAY))
        error = error.__cause__
    return False


def was_connected(error: BaseException | None) -> bool:
    """Whether a statement was under way or begun when the connection broke."""
    while error is not None and not isinstance(error, DBAPIError):
        error = error.__cause__
    return error is not None and error.connection_invalidated


def _state(error: BaseException | None) -> str:
    while error is not None and not isinstance(error, DBAPIError):
        error = error.__cause__
    return getattr(error.orig, "sqlstate", None) or "" if isinstance(error, DBAPIError) else ""


def _engine_kwargs(url: URL, schema: str) -> dict[str, Any]:
    return {"pool_pre_ping": True, "pool_size": 4, "connect_args": connect_args(url, schema)}


def connect_args(url: URL, schema: str = "") -> dict[str, Any]:
    """How every connection is made: what the server is told, and when it counts as gone."""
    settings = {**_SETTINGS, **({"search_path": schema} if schema else {})}
    own = url.query.get("options", "")
    options = [
        own if isinstance(own, str) else " ".join(own),
        *(f"-c {key}={value}" for key, value in settings.items()),
    ]
    return {**_CONNECT_ARGS, "options": " ".join(filter(None, options))}


@contextmanager
def _patient(engine: Engine) -> Iterator[None]:
    """New connections are tried for a minute: a server that is started again costs a study nothing."""

    def connect(dialect: Any, record: Any, args: Any, values: Any) -> Any:
        deadline = monotonic() + PATIENCE_S
        while True:
            try:
                return dialect.connect(*args, **values)
            except dialect.dbapi.OperationalError as error:
                if monotonic() > deadline or any(refusal in str(error) for refusal in _REFUSALS):
                    raise
                time.sleep(_RETRY_S)

    sa.event.listen(engine, "do_connect", connect)
    try:
        yield
    finally:
        sa.event.remove(engine, "do_connect", connect)
