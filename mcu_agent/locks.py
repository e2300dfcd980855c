"""The lock of a rig, and the record beside it. Across processes and threads of one machine.

Three files a rig, named after it: ``.lock`` is held open and locked by the owner and holds the time of its last beat;
``.json`` is the record, replaced as a whole, so that no crash leaves half of one; ``.guard`` is locked for the moment
of a change to the record, by whoever makes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mcu_agent.errors import InventoryError
from mcu_agent.leases import BoardRecord

_PLAIN_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_BEAT_BYTES = 20
_GROUPS = stat.S_ISGID | stat.S_IRWXG
_GUARD_S = 2.0  # whoever keeps the guard for longer has been stopped, and does not come back to write in time
_TRIES, _TRY_S = 5, 0.001  # somebody who only looks holds the lock for some microseconds

_open_files: set[int] = set()


def _forget_open_files() -> None:
    """A forked child would keep its parent's locks alive beyond the parent's death."""
    for file in _open_files:
        with contextlib.suppress(OSError):
            os.close(file)
    _open_files.clear()


os.register_at_fork(after_in_child=_forget_open_files)


def open_until_fork(path: Path, flags: int) -> int:
    """A file descriptor that no child of this process inherits; closed by :func:`close`."""
    file = os.open(path, flags | os.O_CLOEXEC, 0o660)
    _open_files.add(file)
    return file


def close(file: int) -> None:
    """Close what :func:`open_until_fork` opened."""
    _open_files.discard(file)
    os.close(file)


def file_name(rig: str) -> str:
    """The name of a rig's files: its own where that is a plain one, else one that no other rig has."""
    if _PLAIN_NAME.match(rig):
        return rig
    digest = hashlib.sha256(rig.encode()).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', rig).strip('-')[:40] or 'rig'}.{digest}"


class BoardLock:
    """The lock and the record of the rig of ``board_id``."""

    def __init__(self, folder: Path, rig: str, board_id: str = "") -> None:
        self.board_id = board_id or rig
        name = file_name(rig)
        self._path, self._record, self._guard = (folder / f"{name}.{end}" for end in ("lock", "json", "guard"))
        self._file: int | None = None

    def acquire(self) -> bool:
        """Take the lock if nobody has it; False when somebody has."""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_TRY_S)
            file = self._lock(fcntl.LOCK_EX)
            if file is not None:
                self._file = file
                return True
        return False

    def release(self) -> None:
        """Let go of the lock; harmless when it is not held."""
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # a child that was forked this moment may have it open, too
            close(self._file)
        self._file = None

    def is_held_by_anyone(self) -> bool:
        """Whether a process, this one included, holds the lock now."""
        if self._file is not None:
            return True
        if not self._path.exists():
            return False
        file = self._lock(fcntl.LOCK_SH)  # shared, so that those who look do not see each other
        if file is None:
            return True
        close(file)
        return False

    def beat(self, now: float) -> None:
        """Say that the owner is alive; only while holding the lock."""
        if self._file is not None:
            os.pwrite(self._file, f"{now:<{_BEAT_BYTES}.3f}"[:_BEAT_BYTES].encode(), 0)

    def last_beat(self) -> float:
        """When the owner last said that it is alive; 0 where none ever did."""
        try:
            with self._path.open("rb") as file:
                return float(file.read(_BEAT_BYTES))
        except (OSError, ValueError):
            return 0.0

    def read(self) -> BoardRecord:
        """The record; a fresh one where there is none yet, or none that can be read."""
        try:
            return BoardRecord.from_json(json.loads(self._record.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return BoardRecord(board_id=self.board_id)

    def update(self, change: Callable[[BoardRecord], BoardRecord]) -> BoardRecord:
        """Change the record, and give back what it is then. What belongs to the lease (token, owner, deadline) is only
        for the holder of the lock to change."""
        guard = self._take_guard()
        try:
            record = change(self.read())
            fresh = self._record.with_name(f"{self._record.name}.{os.getpid()}.{threading.get_ident()}")
            fresh.write_text(json.dumps(record.to_json()), encoding="utf-8")
            share(fresh)
            fresh.replace(self._record)
        finally:
            close(guard)
        return record

    def _lock(self, how: int) -> int | None:
        """The open lock file, locked; None where somebody else has it."""
        file = self._opened(self._path)
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            close(file)
            return None
        except OSError as error:
            close(file)
            raise InventoryError(f"{self._path}: this file system cannot lock files: {error}") from error
        return file

    def _take_guard(self) -> int:
        file, until = self._opened(self._guard), time.monotonic() + _GUARD_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    return file
                time.sleep(_TRY_S)
            else:
                return file

    def _opened(self, path: Path) -> int:
        try:
            return open_until_fork(path, _OPEN)
        except FileNotFoundError:
            return self._made(path)
        except OSError as error:
            hint = "; remove the link" if error.errno == errno.ELOOP else ""
            raise InventoryError(f"{path}: the lock file cannot be opened: {error.strerror}{hint}") from error

    def _made(self, path: Path) -> int:
        try:
            make_folder(path.parent)
            file = open_until_fork(path, _OPEN | os.O_CREAT)
        except OSError as error:
            raise InventoryError(f"{path}: the lock file cannot be made: {error.strerror}") from error
        share(path)
        return file


def make_folder(folder: Path) -> None:
    """Make a folder and those above it: for this user alone, or for the group where the one above is the group's (it
    may write there and hands the group down, mode 2770), whatever the umask."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    mode = folder.parent.stat().st_mode & _GROUPS
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if mode & stat.S_IWGRP and mode & stat.S_ISGID:  # of a group: the temporary folder is everybody's
            folder.chmod(0o700 | mode)


def share(path: Path) -> None:
    """Let the group in, whatever the umask: in a folder that is the group's, its members share the boards."""
    try:
        path.chmod(0o660)
    except PermissionError:  # another member of the group has made it in the meantime
        return
