"""The sole right to run a study: a locked file where its database is a file, a lease in its database elsewhere.

The file's lock is given back by the system however the process ends. A lease has a deadline on the database's clock,
which its holder puts off while it lives; on the same machine a dead holder is found at once. Every transaction of the
holder begins by making sure that the lease is still its own, so that nothing of a holder that was taken for dead, and
only slept, reaches the tables.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, Row

from orchestrator.errors import StudyError
from orchestrator.tables import HOLDER

LOCK_FILE = "study.lock"
LEASE_S = 30.0
_RENEW_EVERY_S = 5.0
# A transaction does not begin on a lease that could run out while it lasts; it puts off the deadline first.
_LEAST_LEFT_S = 15.0

# Tokens of the leases that this process holds: one of its own that is not among them was given up while the database
# was away.
_HELD: set[str] = set()

_NOW = sa.text("extract(epoch from clock_timestamp())")


class StudyTaken(StudyError):
    """Another process runs the study; ``left_s`` says when its lease ends, where it holds one and does not renew it."""

    def __init__(self, text: str, left_s: float | None = None) -> None:
        super().__init__(text)
        self.left_s = left_s


@contextmanager
def locked_file(folder: Path, name: str) -> Iterator[None]:
    """Keep other processes that see ``folder`` off the study called ``name``.

    Raises:
        StudyTaken: another process has it.
    """
    with (folder / LOCK_FILE).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StudyTaken(f"study {name} is being run by another process; stop that one first") from error
        yield


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A process that can be told from every other: ``born`` is when it started, seconds since 1970."""

    token: str
    machine: str
    pid: int
    born: float

    @property
    def is_dead(self) -> bool:
        """Known to be gone: it ran where we run, and no such process is there. Elsewhere nobody knows."""
        if self.machine != this_machine():
            return False
        if self.pid == os.getpid() and abs(self.born - _born()) <= 1.0:
            return self.token not in _HELD
        try:
            process = psutil.Process(self.pid)
            return bool(abs(process.create_time() - self.born) > 1.0 or process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True


def this_machine() -> str:
    """Name of the host, its start and the process namespace: processes with the same one see each other's ids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _this_process() -> Holder:
    return Holder(token=str(uuid.uuid4()), machine=this_machine(), pid=os.getpid(), born=_born())


def _born() -> float:
    return float(psutil.Process().create_time())


@contextmanager
def leased(engine: Engine, name: str) -> Iterator[None]:
    """Hold the study in its database; every transaction of ``engine`` makes sure of it.

    Raises:
        StudyTaken: another process has it, or (from any transaction inside) has taken it over.
    """
    lease = _Lease(engine, name)
    lease.take()
    sa.event.listen(engine, "begin", lease.make_sure)
    renewer = threading.Thread(target=lease.keep_renewing, name=f"lease of {name}", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        lease.over.set()
        renewer.join()
        sa.event.remove(engine, "begin", lease.make_sure)
        with contextlib.suppress(sa.exc.SQLAlchemyError):  # the database is away: the lease runs out
            lease.give_back()


class _Lease:
    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._me = _this_process()
        self.over = threading.Event()

    def take(self) -> None:
        with self._engine.begin() as connection:
            row = connection.execute(sa.select(HOLDER, _left()).with_for_update()).one()
            if row.token and row.left_s > 0 and not _holder(row).is_dead:
                raise StudyTaken(self._taken_text(row), row.left_s)
            values = {"token": self._me.token, "machine": self._me.machine, "pid": self._me.pid, "born": self._me.born}
            connection.execute(HOLDER.update().values(deadline=_now_plus(LEASE_S), **values))
            _HELD.add(self._me.token)

    def make_sure(self, connection: Connection) -> None:
        """Called as each transaction begins."""
        row = connection.execute(sa.select(HOLDER.c.token, HOLDER.c.machine, HOLDER.c.pid, _left())).one()
        if row.token != self._me.token or (row.left_s < _LEAST_LEFT_S and not self._renew(connection)):
            raise StudyTaken(
                f"study {self._name} was taken over by {_whom(row)}: this process was out of reach of the database for "
                f"longer than {LEASE_S:g} s. Nothing is lost; what was under way here goes on there."
            )

    def keep_renewing(self) -> None:
        while not self.over.wait(_RENEW_EVERY_S):
            # The database is away, or the lease is lost: the next transaction will say so to whoever can act on it.
            with contextlib.suppress(sa.exc.SQLAlchemyError, StudyError), self._engine.begin() as connection:
                self._renew(connection)

    def give_back(self) -> None:
        _HELD.discard(self._me.token)
        with self._engine.begin() as connection:
            connection.execute(HOLDER.update().where(self._is_mine()).values(token="", deadline=0.0))

    def _renew(self, connection: Connection) -> bool:
        update = HOLDER.update().where(self._is_mine()).values(deadline=_now_plus(LEASE_S))
        return connection.execute(update).rowcount == 1

    def _is_mine(self) -> sa.ColumnElement[bool]:
        return HOLDER.c.token == self._me.token

    def _taken_text(self, row: Row[tuple[object, ...]]) -> str:
        return (
            f"study {self._name} is being run by {_whom(row)}; stop that one first. If that machine is gone, the study "
            f"is free in {row.left_s:.0f} s"
        )


def _whom(row: Row[tuple[object, ...]]) -> str:
    return f"process {row.pid} on {str(row.machine).partition(' ')[0] or 'no host any more'}"


def _holder(row: Row[tuple[object, ...]]) -> Holder:
    return Holder(token=row.token, machine=row.machine, pid=row.pid, born=row.born)


def _left() -> sa.Label[float]:
    return (HOLDER.c.deadline - sa.cast(_NOW, sa.Float)).label("left_s")


def _now_plus(seconds: float) -> sa.ColumnElement[float]:
    return sa.cast(_NOW, sa.Float) + seconds
