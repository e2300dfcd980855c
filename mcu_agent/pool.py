"""The boards of a rack as something to borrow: one owner each, given back whatever happens, in order of arrival."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mcu_agent.boards.protocol import Board
from mcu_agent.drivers import make_board
from mcu_agent.errors import AgentError, FirmwareError, InventoryError, LeaseLost, NoBoardFree
from mcu_agent.holding import Holding, LeasedBoard
from mcu_agent.leases import (
    BoardRecord,
    State,
    Timing,
    add_fault,
    after_test,
    clear,
    is_due,
    is_offered,
    is_stuck,
    quarantine,
    state,
    suspect,
)
from mcu_agent.processes import this_process
from mcu_agent.rack import Hub, Rack, RackBoard
from mcu_agent.taking import Taker, Wish

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class BoardStatus:
    """A board and what it is doing; ``detail`` names the owner, the stuck process or the reason it is out of use, and
    ``since`` when that began (seconds since the epoch, 0 for idle boards)."""

    board: RackBoard
    state: State
    detail: str
    record: BoardRecord
    since: float = 0.0


class Pool:
    """Leases boards of ``rack``, with lock files in ``folder``. Everybody on a host who shares the boards shares the
    folder; hosts that share probes share the Redis that the rack file names. Thread-safe."""

    def __init__(
        self,
        rack: Rack,
        folder: Path,
        *,
        make: Callable[[RackBoard], Board] = make_board,
        now: Callable[[], float] = time.time,
        timing: Timing | None = None,
        usb: Path = Path("/sys/bus/usb/devices"),
    ) -> None:
        self.rack = rack
        self._make = make
        self._now = now
        self._timing = timing or Timing()
        self._taker = Taker(rack, folder, self._timing, now)
        self._usb = usb

    @contextmanager
    def lease(
        self,
        kind: str,
        owner: str,
        *,
        duration_s: float,
        wait_s: float = 0.0,
        board_id: str | None = None,
        avoid: Collection[str] = (),
    ) -> Iterator[Board]:
        """A board of ``kind`` for at most ``duration_s``, waiting up to ``wait_s`` for one: the one called
        ``board_id``, or any but those in ``avoid`` (names or rigs). Whoever came first is served first.

        A fault of the rig inside the block counts against the board; three in a row quarantine it.

        Raises:
            InventoryError: the rack has no board of this kind.
            NoBoardFree: none became free in time, or all are quarantined (transient).
            LeaseLost: from any use of the board after ``duration_s`` (transient).
        """
        with (
            self.hold(kind, owner, duration_s=duration_s, wait_s=wait_s, board_id=board_id, avoid=avoid) as holding,
            self.opened(holding) as board,
        ):
            yield board

    @contextmanager
    def hold(
        self,
        kind: str,
        owner: str,
        *,
        duration_s: float,
        wait_s: float = 0.0,
        board_id: str | None = None,
        avoid: Collection[str] = (),
        is_test: bool = False,
    ) -> Iterator[Holding]:
        """As :meth:`lease`, without a driver: :meth:`opened` gives one, as often as it is needed. ``is_test`` asks for
        boards that are out of use, too."""
        entries = self._wanted(kind, board_id, avoid)
        wish = Wish(entries=entries, owner=owner, duration_s=duration_s, is_test=is_test)
        holding = self._taker.take(wish, wait_s)
        if holding is None:
            states = "; ".join(f"{s.board.board_id} {s.state.value} {s.detail}".rstrip() for s in self.statuses())
            raise NoBoardFree(f"no board of kind {kind} became free in {wait_s:g} s: {states}")
        fault = ""
        try:
            yield holding
        except AgentError as error:
            fault = str(error) if is_rig_fault(error) and not is_test else ""
            raise
        finally:
            self._taker.give_back(holding, fault)

    @contextmanager
    def opened(self, holding: Holding) -> Iterator[Board]:
        """The driver of a board that is held; found anew each time, so that one that was away and came back is seen."""
        with closing(self._make(holding.entry)) as board:
            yield LeasedBoard(board, holding)

    def statuses(self) -> list[BoardStatus]:
        """Every board of the rack and what it is doing."""
        return [self._status(entry) for entry in self.rack.boards]

    def counts(self) -> dict[str, int]:
        """How many boards are in each state, all states named."""
        found = Tally(status.state for status in self.statuses())
        return {item.value: found[item] for item in State}

    def is_hub_present(self, hub: Hub) -> bool | None:
        """Whether this host sees a hub; None where it cannot be asked."""
        return (self._usb / hub.location).exists() if self._usb.exists() else None

    def now(self) -> float:
        """The time that leases go by, in seconds since the epoch."""
        return self._now()

    def n_waiting(self) -> int:
        """How many wait for a board, in this process and others."""
        return len(self._taker.queue.waiting())

    def record(self, board_id: str) -> BoardRecord:
        """What is remembered of a board.

        Raises:
            InventoryError: the rack has no such board.
        """
        return self._taker.look(self.rack.board(board_id)).read()

    def put_back(self, board_id: str) -> None:
        """End the quarantine of a board.

        Raises:
            InventoryError: the rack has no such board.
            NoBoardFree: somebody is using it.
        """
        entry = self.rack.board(board_id)
        lock = self._taker.look(entry)
        if lock.is_held_by_anyone():
            raise NoBoardFree(f"board {board_id} is in use")
        lock.update(clear)
        self._taker.queue.wake([entry.rig])

    def quarantine(self, board_id: str, reason: str, *, by: str) -> None:
        """Take a board out of use. A lease that holds it is not disturbed; it is the last one.

        Raises:
            InventoryError: the rack has no such board, or ``reason`` is empty.
        """
        if not reason.strip():  # an empty one means on record that the board is in use
            raise InventoryError(f"board {board_id}: the reason to take it out of use is empty; say why")
        self._change(board_id, lambda record: quarantine(record, reason, now=self._now(), by=by))

    def suspect(self, board_id: str, reason: str) -> None:
        """Offer a board to nobody before it has been looked into.

        Raises:
            InventoryError: the rack has no such board.
        """
        self._change(board_id, lambda record: suspect(record, reason, now=self._now()))

    def note_fault(self, board_id: str, fault: str) -> None:
        """Count a fault of the rig against a board; three in a row quarantine it.

        Raises:
            InventoryError: the rack has no such board.
        """
        self._change(board_id, lambda record: replace(add_fault(record, fault, now=self._now()), suspect=""))

    def note_test(self, board_id: str, fault: str) -> BoardRecord:
        """Remember a self-test: one that passed (``fault`` is empty) heals the board, one that failed quarantines it.

        Raises:
            InventoryError: the rack has no such board.
        """
        after = self._change(board_id, lambda record: after_test(record, fault, now=self._now()))
        self._taker.queue.wake([self.rack.board(board_id).rig])
        return after

    def due_for_self_test(self, now: float, every_s: float | None = None) -> list[RackBoard]:
        """Boards that are out of use and whose time to try again has come, the longest waiting first; with ``every_s``
        idle boards, too, that were last tested so long ago."""
        found = [(record.tested_at, entry) for entry, record in self._records() if is_due(record, now)]
        if every_s is not None:
            found += [
                (record.tested_at, entry)
                for entry, record in self._records()
                if is_offered(record, now)
                and now >= record.tested_at + every_s
                and not (record.owner and self._taker.look(entry).is_held_by_anyone())  # a dead owner has it no more
            ]
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    def overdue(self) -> list[BoardStatus]:
        """Boards that this very process holds beyond their deadline: a thread of it does not come back from a driver,
        and only the end of the process frees them. For programs that lease boards themselves; nothing here acts on it:
        what the boards do is shown by their state."""
        me = this_process()
        return [status for status in self.statuses() if status.state is State.STUCK and status.record.holder == me]

    def _records(self) -> list[tuple[RackBoard, BoardRecord]]:
        return [(entry, self._taker.look(entry).read()) for entry in self.rack.boards]

    def _change(self, board_id: str, change: Callable[[BoardRecord], BoardRecord]) -> BoardRecord:
        return self._taker.look(self.rack.board(board_id)).update(change)

    def _wanted(self, kind: str, board_id: str | None, avoid: Collection[str]) -> tuple[RackBoard, ...]:
        entries = self.rack.of_kind(kind)
        if not entries:
            known = ", ".join(self.rack.board_kinds())
            raise InventoryError(f"the rack has no board of kind {kind!r}; it has {known}")
        if board_id is not None:
            entry = self.rack.board(board_id)
            if entry.kind != kind:
                raise InventoryError(f"board {board_id} is of kind {entry.kind}, not {kind}")
            return (entry,)
        left = tuple(entry for entry in entries if entry.board_id not in avoid and entry.rig not in avoid)
        if not left:
            raise NoBoardFree(f"no board of kind {kind} is left: {', '.join(sorted(avoid))} were tried")
        return left

    def _status(self, entry: RackBoard) -> BoardStatus:
        lock, now = self._taker.look(entry), self._now()
        record, is_locked = lock.read(), lock.is_held_by_anyone()
        stuck = is_locked and is_stuck(record, lock.last_beat(), now, self._timing)
        found = state(record, is_locked=is_locked, is_stuck=stuck, now=now)
        detail, since = _described(record, found)
        elsewhere = self._taker.holder_elsewhere(entry) if found is State.IDLE else ""
        if elsewhere:
            found, detail = State.LEASED, elsewhere
        return BoardStatus(board=entry, state=found, detail=detail, record=record, since=since)


def _described(record: BoardRecord, found: State) -> tuple[str, float]:
    if found is State.LEASED:
        return record.owner, record.since
    if found is State.STUCK:
        return f"process {record.pid} of {record.owner or 'nobody'} does not come back", record.since
    if found is State.QUARANTINED:
        return record.quarantine, record.quarantined_at
    return (record.suspect, record.suspected_at) if found is State.SUSPECT else ("", 0.0)


def is_rig_fault(error: AgentError) -> bool:
    """Whether an error speaks against the board it happened on."""
    return error.is_transient and not isinstance(error, (FirmwareError, LeaseLost, NoBoardFree))


def lock_folder(namespace: str = "") -> Path:
    """Where this user's lock files lie on this host: ``$EDGEFRONT_LOCKS``, or a folder under the system's temporary
    one.

    ``namespace`` separates boards that exist only for one study (virtual ones) from those that all studies share.

    Raises:
        InventoryError: the variable names something that is no folder to write into, or lies in one.
    """
    base = os.environ.get("EDGEFRONT_LOCKS")
    if base:
        _check_lock_folder(Path(base))
    folder = Path(base) if base else Path(tempfile.gettempdir()) / f"edgefront-{os.getuid()}"
    return folder / "boards" / namespace if namespace else folder / "boards"


def _check_lock_folder(folder: Path) -> None:
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        found = "is no folder" if not there.is_dir() else "" if os.access(there, os.W_OK | os.X_OK) else "is read-only"
    except OSError as error:  # a folder on the way that may not be looked into
        there, found = folder, f"cannot be reached: {error.strerror}"
    if found:
        raise InventoryError(
            f"EDGEFRONT_LOCKS is {folder}: {there} {found}; name a folder that all who share the boards can write to"
        )
