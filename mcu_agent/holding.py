"""A rig while it is held: its lease, kept alive by a thread, and the board that refuses what comes too late."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from mcu_agent.boards.protocol import Board, Counter
from mcu_agent.errors import LeaseLost
from mcu_agent.image import Image
from mcu_agent.leases import BoardRecord, Lease, Timing, check, give_back
from mcu_agent.locks import BoardLock
from mcu_agent.rack import RackBoard

if TYPE_CHECKING:  # a host that shares no probes has no Redis client
    from mcu_agent.sharedlease import SharedLease, SharedLeases


class Holding:
    """One rig, leased. :meth:`mcu_agent.pool.Pool.hold` gives one; its thread beats until :meth:`give_back`, and renews
    the lease among hosts, where there is one, until the deadline."""

    def __init__(
        self,
        entry: RackBoard,
        lock: BoardLock,
        lease: Lease,
        *,
        timing: Timing,
        now: Callable[[], float],
        shared: tuple[SharedLeases, SharedLease] | None = None,
    ) -> None:
        self.entry = entry
        self.lease = lease
        self._lock = lock
        self._timing = timing
        self._now = now
        self._shared = shared
        self._shared_until = time.monotonic() + timing.shared_s
        self._is_over = threading.Event()
        self._lock.beat(now())
        self._heart = threading.Thread(target=self._beat, name=f"lease of {entry.board_id}", daemon=True)
        self._heart.start()

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.lease.deadline - self._now()

    def check(self) -> None:
        """Pass while the lease holds, as far as that costs nothing to know: by its deadlines.

        Raises:
            LeaseLost: it does not.
        """
        if self._now() >= self.lease.deadline:
            raise LeaseLost(f"board {self.entry.board_id}: lease {self.lease.token} has ended; ask for a new one")
        if self._shared is not None and time.monotonic() >= self._shared_until:
            raise LeaseLost(
                f"board {self.entry.board_id}: lease {self.lease.token} has lapsed at {self._shared[0].place}, which "
                "did not answer in time; another host may have the board"
            )

    def check_fully(self) -> None:
        """Pass while the lease holds by what is on record, too.

        Raises:
            LeaseLost: it does not.
        """
        self.check()
        self._check_mine()

    def extend(self, duration_s: float) -> None:
        """Hold the board for ``duration_s`` from now, even where the deadline has just passed: nobody else can have
        taken a board whose lock is held by a process that beats.

        Raises:
            LeaseLost: another has the board.
        """
        self._check_mine()
        self.lease = replace(self.lease, deadline=self._now() + duration_s)
        self.update(lambda record: replace(record, deadline=self.lease.deadline))

    def update(self, change: Callable[[BoardRecord], BoardRecord]) -> BoardRecord:
        """Change what is on record of the board."""
        return self._lock.update(change)

    def give_back(self, fault: str = "") -> None:
        """End the lease; ``fault`` is that of the rig, if there was one."""
        self._is_over.set()
        if not sys.is_finalizing():  # at the end of a program that left a lease open, threads no longer end
            self._heart.join()
        try:
            self._lock.update(self._given_back(fault))
            if self._shared is not None:
                self._shared[0].give_back(self._shared[1])
        finally:
            self._lock.release()

    def _check_mine(self) -> None:
        check(self.lease, self._lock.read())
        if self._shared is not None:
            self._renew_shared(*self._shared)

    def _given_back(self, fault: str) -> Callable[[BoardRecord], BoardRecord]:
        def change(record: BoardRecord) -> BoardRecord:
            return give_back(record, now=self._now(), fault=fault) if record.token == self.lease.token else record

        return change

    def _beat(self) -> None:
        while not self._is_over.wait(self._timing.beat_s):
            self._lock.beat(self._now())
            if self._shared is not None and self._now() < self.lease.deadline:
                try:
                    self._renew_shared(*self._shared)
                except LeaseLost:  # whoever uses the board finds out by `check`
                    self._shared_until = 0.0

    def _renew_shared(self, leases: SharedLeases, lease: SharedLease) -> None:
        asked = time.monotonic()
        if asked >= self._shared_until:
            raise LeaseLost(f"board {self.entry.board_id}: lease {lease.token} has lapsed at {leases.place}")
        if leases.renew(lease):
            self._shared_until = asked + self._timing.shared_s


class LeasedBoard:
    """A board that refuses every operation once its lease has ended, so that a late holder cannot disturb the next
    one.
    """

    def __init__(self, board: Board, holding: Holding) -> None:
        self._board = board
        self._holding = holding
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
        self._holding.check_fully()  # the record is read once a load: a file read before each
        self._board.load(image)  # of the thousands of small operations would cost more than they do

    def run_until(self, addresses: Collection[int], timeout_s: float, quiet_s: float = 0.0) -> int:
        """As the board's, within the lease: it ends at the lease's deadline at the latest."""
        self._holding.check()
        return self._board.run_until(addresses, min(timeout_s, self._holding.left_s), quiet_s)

    def read(self, address: int, size: int) -> bytes:
        """As the board's, within the lease."""
        self._holding.check()
        return self._board.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """As the board's, within the lease."""
        self._holding.check()
        self._board.write(address, data)

    def close(self) -> None:
        """Switch the board off; allowed to a late holder only while nobody else has the board."""
        self._board.close()
