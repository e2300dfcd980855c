"""The boards of a rack as something to borrow: one owner each, given back whatever happens."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mcu_agent.boards.protocol import Board, Counter
from mcu_agent.drivers import make_board
from mcu_agent.errors import AgentError, FirmwareError, InventoryError, LeaseLost, NoBoardFree
from mcu_agent.image import Image
from mcu_agent.leases import BoardLock, BoardRecord, Lease, State, check, clear, give_back, grant, state
from mcu_agent.rack import Rack, RackBoard

_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class BoardStatus:
    """A board and what it is doing; ``detail`` names the owner or the reason of the quarantine."""

    board: RackBoard
    state: State
    detail: str


class Pool:
    """Leases boards of ``rack``, with lock files in ``folder``. Everybody who shares the boards shares the folder."""

    def __init__(
        self,
        rack: Rack,
        folder: Path,
        *,
        make: Callable[[RackBoard], Board] = make_board,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.rack = rack
        self._folder = folder
        self._make = make
        self._now = now
        self._sleep = sleep

    @contextmanager
    def lease(self, kind: str, owner: str, *, duration_s: float, wait_s: float = 0.0) -> Iterator[Board]:
        """A board of ``kind`` for at most ``duration_s``, waiting up to ``wait_s`` for one.

        A fault of the rig inside the block counts against the board; three in a row quarantine it.

        Raises:
            InventoryError: the rack has no board of this kind.
            NoBoardFree: none became free in time, or all are quarantined (transient).
            LeaseLost: from any use of the board after ``duration_s`` (transient).
        """
        lock, lease = self._take(kind, owner, duration_s, wait_s)
        fault = ""
        try:
            with closing(self._make(self._entry(lease.board_id))) as board:
                yield LeasedBoard(board, lease, lock.read, self._now)
        except AgentError as error:
            if error.is_transient and not isinstance(error, FirmwareError):
                fault = str(error)
            raise
        finally:
            try:
                lock.write(give_back(lock.read(), fault=fault))
            finally:
                lock.release()

    def statuses(self) -> list[BoardStatus]:
        """Every board of the rack and what it is doing."""
        return [self._status(entry) for entry in self.rack.boards]

    def counts(self) -> dict[str, int]:
        """How many boards are in each state, all states named."""
        found = Tally(status.state for status in self.statuses())
        return {item.value: found[item] for item in State}

    def put_back(self, board_id: str) -> None:
        """End the quarantine of a board.

        Raises:
            InventoryError: the rack has no such board.
            NoBoardFree: somebody is using it.
        """
        if board_id not in {entry.board_id for entry in self.rack.boards}:
            known = ", ".join(entry.board_id for entry in self.rack.boards)
            raise InventoryError(f"no board is called {board_id!r}; there are {known}")
        lock = BoardLock(self._folder, board_id)
        if not lock.acquire():
            raise NoBoardFree(f"board {board_id} is in use")
        try:
            lock.write(clear(lock.read()))
        finally:
            lock.release()

    def _entry(self, board_id: str) -> RackBoard:
        return next(entry for entry in self.rack.boards if entry.board_id == board_id)

    def _take(self, kind: str, owner: str, duration_s: float, wait_s: float) -> tuple[BoardLock, Lease]:
        entries = self.rack.of_kind(kind)
        if not entries:
            known = ", ".join(self.rack.board_kinds())
            raise InventoryError(f"the rack has no board of kind {kind!r}; it has {known}")
        waited = 0.0
        while True:
            for entry in entries:
                lock = BoardLock(self._folder, entry.board_id)
                lease = self._try(lock, owner, duration_s)
                if lease is not None:
                    return lock, lease
            if waited >= wait_s:
                states = "; ".join(f"{s.board.board_id} {s.state.value} {s.detail}".rstrip() for s in self.statuses())
                raise NoBoardFree(f"no board of kind {kind} became free in {wait_s:g} s: {states}")
            self._sleep(_POLL_S)
            waited += _POLL_S

    def _try(self, lock: BoardLock, owner: str, duration_s: float) -> Lease | None:
        if not lock.acquire():
            return None
        lease = None
        try:
            record = lock.read()
            if not record.quarantine:
                record, granted = grant(record, owner, self._now(), duration_s)
                lock.write(record)
                lease = granted
        finally:
            if lease is None:  # quarantined, or the record could not be written
                lock.release()
        return lease

    def _status(self, entry: RackBoard) -> BoardStatus:
        lock = BoardLock(self._folder, entry.board_id)
        record = lock.read()
        now = state(record, is_locked=lock.is_held_by_anyone())
        detail = {State.IDLE: "", State.LEASED: record.owner, State.QUARANTINED: record.quarantine}[now]
        return BoardStatus(board=entry, state=now, detail=detail)


class LeasedBoard:
    """A board that refuses every operation once its lease has ended, so that a late holder cannot disturb the next
    one.
    """

    def __init__(self, board: Board, lease: Lease, record: Callable[[], BoardRecord], now: Callable[[], float]) -> None:
        self._board = board
        self._lease = lease
        self._record = record
        self._now = now
        self.board_id = board.board_id
        self.kind = board.kind
        self.is_emulated = board.is_emulated
        self.emulator = board.emulator

    @property
    def counter(self) -> Counter | None:
        """The board's counter, if it has one."""
        return self._board.counter

    def load(self, image: Image) -> None:
        """As the board's, within the lease."""
        check(self._lease, self._record(), self._now())  # the record is read once a load: a file read before each
        self._board.load(image)  # of the thousands of small operations would cost more than they do

    def run_until(self, addresses: Collection[int], timeout_s: float, quiet_s: float = 0.0) -> int:
        """As the board's, within the lease: it ends at the lease's deadline at the latest."""
        self._check_deadline()
        return self._board.run_until(addresses, min(timeout_s, self._lease.deadline - self._now()), quiet_s)

    def read(self, address: int, size: int) -> bytes:
        """As the board's, within the lease."""
        self._check_deadline()
        return self._board.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """As the board's, within the lease."""
        self._check_deadline()
        self._board.write(address, data)

    def close(self) -> None:
        """Switch the board off; allowed to a late holder only while nobody else has the board."""
        self._board.close()

    def _check_deadline(self) -> None:
        if self._now() >= self._lease.deadline:
            raise LeaseLost(f"board {self.board_id}: lease {self._lease.token} has ended; ask for a new one")


def lock_folder(namespace: str = "") -> Path:
    """Where this user's lock files lie on this host: ``$EDGEFRONT_LOCKS``, or a folder under the system's temporary
    one.

    ``namespace`` separates boards that exist only for one study (virtual ones) from those that all studies share.
    """
    base = os.environ.get("EDGEFRONT_LOCKS")
    folder = Path(base) if base else Path(tempfile.gettempdir()) / f"edgefront-{os.getuid()}"
    return folder / "boards" / namespace if namespace else folder / "boards"
