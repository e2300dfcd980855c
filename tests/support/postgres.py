"""A PostgreSQL server of one's own: made in a folder, on a unix socket there, stopped and deleted at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

USER, PASSWORD = "lab", "pass:w@rd/of%lab"
_QUOTED = "pass%3Aw%40rd%2Fof%25lab"


def binaries() -> Path | None:
    """The folder with ``initdb`` and ``pg_ctl``: Debian keeps the server's programs off the PATH."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in found if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


def why_not() -> str:
    """Why no server can be started here; empty where one can."""
    return "" if binaries() else "no PostgreSQL server is installed (Debian: apt-get install postgresql)"


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresServer:
    """A server that listens in ``folder`` only."""

    folder: Path
    account: str | None

    def url(self, database: str = "lab") -> str:
        return f"postgresql://{USER}:{_QUOTED}@/{database}?host={self.folder}"

    def make_database(self, name: str) -> str:
        """A new, empty database; returns its address."""
        with self.connection() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def connection(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), user=USER, password=PASSWORD, dbname=database, autocommit=True)

    def start(self) -> None:
        # No flush to the disk: nothing here has to outlive the machine.
        settings = f"-k {self.folder} -c listen_addresses= -c fsync=off -c max_connections=60"
        self._control("start", "-o", settings, "-l", str(self.folder / "log"))

    def stop(self, mode: str = "immediate") -> None:
        """``immediate`` is a crash: connections break, the next start recovers."""
        self._control("stop", "-m", mode)

    def _control(self, *words: str) -> None:
        self.run("pg_ctl", "-w", "-D", str(self.folder / "data"), *words)

    def run(self, program: str, *words: str) -> None:
        folder = binaries()
        assert folder is not None
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        subprocess.run(
            [str(folder / program), *words],
            user=self.account,
            env=environment,
            cwd=self.folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Started, with a user who needs a password and a database called ``lab``."""
    # Not below pytest's folder: it is too deep for a socket's path, and closed to the account that the server needs.
    folder = Path(tempfile.mkdtemp(prefix="edgefront-pg-"))
    server = PostgresServer(folder=folder, account=_account())
    try:
        (folder / "password").write_text(PASSWORD + "\n")
        if server.account:
            shutil.chown(folder, server.account)
            shutil.chown(folder / "password", server.account)
        words = ["-A", "scram-sha-256", "-U", USER, "--pwfile", str(folder / "password"), "-N", "-E", "UTF8"]
        server.run("initdb", "-D", str(folder / "data"), *words)
        server.start()
        try:
            server.make_database("lab")
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                server.stop()
    finally:
        shutil.rmtree(folder)


def _account() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)
