"""Who holds which board. The rules are pure functions on frozen records; :class:`BoardLock` is the one effect.

A board has one owner: a lock file held open for as long as the lease lasts, which the operating system frees when the
owner dies, and beside it a record of the last lease, of faults in a row and of quarantine. Every lease has a token one
higher than the one before and a deadline; a holder past its deadline must not touch the board any more.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

from mcu_agent.errors import InventoryError, LeaseLost

RECORD_VERSION = 1
FAULTS_BEFORE_QUARANTINE = 3


class State(Enum):
    """What a board is doing, as reported to people and metrics."""

    IDLE = "idle"
    LEASED = "leased"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The right to use ``board_id`` until ``deadline`` (seconds since the epoch)."""

    board_id: str
    owner: str
    token: int
    deadline: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BoardRecord:
    """What is remembered of a board between leases. ``quarantine`` says why it is out of use, empty when it is not."""

    board_id: str
    token: int = 0
    owner: str = ""
    deadline: float = 0.0
    faults: int = 0
    quarantine: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"version": RECORD_VERSION, **{name: getattr(self, name) for name in BoardRecord.__dataclass_fields__}}

    @staticmethod
    def from_json(data: dict[str, Any]) -> BoardRecord:
        if data.get("version") != RECORD_VERSION:
            raise ValueError(f"board record has version {data.get('version')!r}; this program reads {RECORD_VERSION}")
        return BoardRecord(**{key: value for key, value in data.items() if key != "version"})


def grant(record: BoardRecord, owner: str, now: float, duration_s: float) -> tuple[BoardRecord, Lease]:
    """A new lease on the board, with the next token.

    Raises:
        ValueError: the board is quarantined, or the duration is not above 0.
    """
    if record.quarantine:
        raise ValueError(f"board {record.board_id} is quarantined: {record.quarantine}")
    if duration_s <= 0:
        raise ValueError(f"a lease of {duration_s:g} s is none")
    lease = Lease(board_id=record.board_id, owner=owner, token=record.token + 1, deadline=now + duration_s)
    return replace(record, token=lease.token, owner=owner, deadline=lease.deadline), lease


def check(lease: Lease, record: BoardRecord, now: float) -> None:
    """Pass while ``lease`` is the board's current one and not past its deadline.

    Raises:
        LeaseLost: it is not; whatever is done on the board from here on is void.
    """
    if record.token != lease.token:
        raise LeaseLost(f"board {lease.board_id}: lease {lease.token} was followed by {record.token} of {record.owner}")
    if now >= lease.deadline:
        raise LeaseLost(f"board {lease.board_id}: lease {lease.token} ended {now - lease.deadline:.1f} s ago")


def give_back(record: BoardRecord, *, fault: str = "") -> BoardRecord:
    """The record after a lease: a fault of the rig adds to those in a row, a good end clears them, and the
    ``FAULTS_BEFORE_QUARANTINE``-th in a row takes the board out of use."""
    faults = record.faults + 1 if fault else 0
    quarantine = f"{faults} faults in a row, the last: {fault}" if faults >= FAULTS_BEFORE_QUARANTINE else ""
    return replace(record, owner="", deadline=0.0, faults=faults, quarantine=quarantine)


def clear(record: BoardRecord) -> BoardRecord:
    """The record of a board that a person has put back into use."""
    return replace(record, faults=0, quarantine="")


def state(record: BoardRecord, *, is_locked: bool) -> State:
    """What the board is doing; a lock that nobody holds any more makes an unfinished lease void."""
    if record.quarantine:
        return State.QUARANTINED
    return State.LEASED if is_locked else State.IDLE


class BoardLock:
    """The lock file of one board and the record in it. Across processes and threads of one machine.

    The record is written while the lock is held, in place, because replacing the file would leave others a lock on the
    old one. A record torn by a crash in the middle of writing reads as a fresh one.
    """

    def __init__(self, folder: Path, board_id: str) -> None:
        self.board_id = board_id
        self._path = folder / f"{board_id}.lock"
        self._file: TextIO | None = None

    def acquire(self) -> bool:
        """Take the lock if nobody has it; False when somebody has."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.fdopen(os.open(self._path, flags, 0o660), "r+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except OSError as error:
            file.close()
            raise InventoryError(f"{self._path}: this file system cannot lock files: {error}") from error
        self._file = file
        return True

    def release(self) -> None:
        """Let go of the lock; harmless when it is not held."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def is_held_by_anyone(self) -> bool:
        """Whether a process, this one included, holds the lock now."""
        if self._file is not None:
            return True
        if not self._path.exists():
            return False
        is_free = self.acquire()
        self.release()
        return not is_free

    def read(self) -> BoardRecord:
        """The record; a fresh one where there is none yet."""
        try:
            return BoardRecord.from_json(json.loads(self._path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return BoardRecord(board_id=self.board_id)

    def write(self, record: BoardRecord) -> None:
        """Store the record; only while holding the lock."""
        if self._file is None:
            raise LeaseLost(f"board {self.board_id}: its record can only be written by who holds its lock")
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(record.to_json()))
        self._file.flush()
