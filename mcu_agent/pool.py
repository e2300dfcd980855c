"""The boards of a rack as something to borrow: one owner each, given back whatever happens, in order of arrival."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
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
    clear,
    grant,
    is_due,
    is_offered,
    is_stuck,
    quarantine,
    state,
    suspect,
    tested,
)
from mcu_agent.locks import BoardLock
from mcu_agent.processes import end, this_process
from mcu_agent.rack import Hub, Rack, RackBoard
from mcu_agent.waiting import Place, Queue

if TYPE_CHECKING:
    from mcu_agent.sharedlease import SharedLease, SharedLeases

_BUSY_POLL_S = 0.1  # while somebody ahead in the queue has yet to take a free board
_BACK_POLL_S = 2.0  # of those who are not next: they are woken when they are


@dataclass(frozen=True, kw_only=True, slots=True)
class BoardStatus:
    """A board and what it is doing; ``detail`` names the owner, the stuck process or the reason it is out of use, and
    ``since`` when that began (seconds since the epoch, 0 for idle boards)."""

    board: RackBoard
    state: State
    detail: str
    record: BoardRecord
    since: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wish:
    """What somebody asks for: one of ``entries``, whose health does not matter if ``is_test``."""

    entries: tuple[RackBoard, ...]
    owner: str
    duration_s: float
    is_test: bool
    seen: dict[str, tuple[tuple[int, float], float]] = field(default_factory=dict)  # rig: (token, beat), seen first at


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
        self._folder = folder
        self._make = make
        self._now = now
        self._timing = timing or Timing()
        self._queue = Queue(folder / "queue")
        self._usb = usb
        self._shared = _shared_leases(rack, self._timing)

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
        wish = _Wish(entries=self._wanted(kind, board_id, avoid), owner=owner, duration_s=duration_s, is_test=is_test)
        holding = self._take(wish, kind, wait_s)
        fault = ""
        try:
            yield holding
        except AgentError as error:
            fault = str(error) if is_rig_fault(error) and not is_test else ""
            raise
        finally:
            holding.give_back(fault)
            self._queue.wake([holding.entry.rig])

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
        return len(self._queue.waiting())

    def record(self, board_id: str) -> BoardRecord:
        """What is remembered of a board.

        Raises:
            InventoryError: the rack has no such board.
        """
        return self._lock(self.rack.board(board_id)).read()

    def put_back(self, board_id: str) -> None:
        """End the quarantine of a board.

        Raises:
            InventoryError: the rack has no such board.
            NoBoardFree: somebody is using it.
        """
        entry = self.rack.board(board_id)
        lock = self._lock(entry)
        if lock.is_held_by_anyone():
            raise NoBoardFree(f"board {board_id} is in use")
        lock.update(clear)
        self._queue.wake([entry.rig])

    def quarantine(self, board_id: str, reason: str, *, by: str) -> None:
        """Take a board out of use. A lease that holds it is not disturbed; it is the last one.

        Raises:
            InventoryError: the rack has no such board.
        """
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
        after = self._change(board_id, lambda record: tested(record, fault, now=self._now()))
        self._queue.wake([self.rack.board(board_id).rig])
        return after

    def due_for_self_test(self, now: float, every_s: float | None = None) -> list[RackBoard]:
        """Boards that are out of use and whose time to try again has come, the longest waiting first; with ``every_s``
        idle boards, too, that were last tested so long ago."""
        found = [(record.tested_at, entry) for entry, record in self._records() if is_due(record, now)]
        if every_s is not None:
            found += [
                (record.tested_at, entry)
                for entry, record in self._records()
                if is_offered(record, now) and not record.owner and now >= record.tested_at + every_s
            ]
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    def overdue(self) -> list[BoardStatus]:
        """Boards that this very process holds beyond their deadline: a thread of it does not come back from a driver,
        and only the end of the process frees them."""
        me = this_process()
        return [status for status in self.statuses() if status.state is State.STUCK and status.record.holder == me]

    def _records(self) -> list[tuple[RackBoard, BoardRecord]]:
        return [(entry, self._lock(entry).read()) for entry in self.rack.boards]

    def _change(self, board_id: str, change: Callable[[BoardRecord], BoardRecord]) -> BoardRecord:
        return self._lock(self.rack.board(board_id)).update(change)

    def _lock(self, entry: RackBoard) -> BoardLock:
        return BoardLock(self._folder, entry.rig, entry.board_id)

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

    def _take(self, wish: _Wish, kind: str, wait_s: float) -> Holding:
        until = time.monotonic() + wait_s
        with self._queue.join([entry.rig for entry in wish.entries]) as place:
            while True:
                holding, pause_s = self._attempt(wish, place)
                if holding is not None:
                    break
                left_s = until - time.monotonic()
                if left_s <= 0:
                    break
                place.wait(min(left_s, pause_s))
        self._queue.wake(place.ticket.rigs)  # several boards may have become free at once, by the death of a process
        if holding is not None:
            return holding
        states = "; ".join(f"{s.board.board_id} {s.state.value} {s.detail}".rstrip() for s in self.statuses())
        raise NoBoardFree(f"no board of kind {kind} became free in {wait_s:g} s: {states}")

    def _attempt(self, wish: _Wish, place: Place) -> tuple[Holding | None, float]:
        """A holding, if it is this one's turn and a board is free; else how long to wait before looking again."""
        ahead = place.ahead()
        free = [entry for entry in wish.entries if self._is_free(entry, wish)]
        rig, is_claimed = place.turn(ahead, [entry.rig for entry in free], self._timing.skip_s)
        mine = [entry for entry in free if entry.rig == rig] if ahead else free
        for entry in mine:
            holding = self._try(entry, wish)
            if holding is not None:
                return holding, 0.0
        if is_claimed:
            return None, min(_BUSY_POLL_S, self._timing.poll_s)
        is_next = len(ahead) <= 1  # two of them, in case one sleeps
        return None, self._timing.poll_s if is_next else max(_BACK_POLL_S, self._timing.poll_s)

    def _is_free(self, entry: RackBoard, wish: _Wish) -> bool:
        lock = self._lock(entry)
        if not wish.is_test and not is_offered(lock.read(), self._now()):
            return False
        if not lock.is_held_by_anyone():
            wish.seen.pop(entry.rig, None)
            return True
        self._end_stale(entry.rig, lock, wish)
        return False

    def _end_stale(self, rig: str, lock: BoardLock, wish: _Wish) -> None:
        """End a holder that has not beaten for as long as this one has watched, and is past its deadline. Watching is
        by a clock of our own, because the time of day jumps, on hosts that have just found a time server."""
        record, beat, clock = lock.read(), lock.last_beat(), time.monotonic()
        seen, since = wish.seen.get(rig, (None, clock))
        if seen != (record.token, beat):
            wish.seen[rig] = ((record.token, beat), clock)
            return
        is_past = bool(record.owner) and self._now() >= record.deadline + self._timing.grace_s
        if is_past and clock - since >= self._timing.stale_s:
            end(record.holder)

    def _try(self, entry: RackBoard, wish: _Wish) -> Holding | None:
        lock = self._lock(entry)
        if not lock.acquire():
            return None
        try:
            holding = self._granted(entry, lock, wish)
        except BaseException:
            lock.release()
            raise
        if holding is None:  # out of use, or another host's
            lock.release()
        return holding

    def _granted(self, entry: RackBoard, lock: BoardLock, wish: _Wish) -> Holding | None:
        now = self._now()
        if not wish.is_test and not is_offered(lock.read(), now):
            return None
        shared = self._take_shared(entry, wish.owner)
        if shared is None and self._is_shared(entry):
            return None
        token = shared[1].token if shared else 0
        lock.beat(now)  # before the owner's name: else the beat of the one before would be taken for his
        named = replace(lock.read(), board_id=entry.board_id)
        granted, lease = grant(named, wish.owner, now, wish.duration_s, token=token, holder=this_process())
        lock.update(lambda record: _with_lease(record, granted))
        return Holding(entry, lock, lease, timing=self._timing, now=self._now, shared=shared)

    def _is_shared(self, entry: RackBoard) -> bool:
        return self._shared is not None and entry.driver != "virtual"

    def _take_shared(self, entry: RackBoard, owner: str) -> tuple[SharedLeases, SharedLease] | None:
        if self._shared is None or not self._is_shared(entry):
            return None
        taken = self._shared.take(entry.rig, owner, socket.gethostname())
        return None if taken is None else (self._shared, taken)

    def _status(self, entry: RackBoard) -> BoardStatus:
        lock, now = self._lock(entry), self._now()
        record, is_locked = lock.read(), lock.is_held_by_anyone()
        stuck = is_locked and is_stuck(record, lock.last_beat(), now, self._timing)
        found = state(record, is_locked=is_locked, is_stuck=stuck, now=now)
        detail, since = _described(record, found)
        if found is State.IDLE and self._is_shared(entry) and self._shared is not None:
            elsewhere = self._shared.holder(entry.rig)
            found, detail = (State.LEASED, elsewhere) if elsewhere else (found, detail)
        return BoardStatus(board=entry, state=found, detail=detail, record=record, since=since)


def _with_lease(record: BoardRecord, granted: BoardRecord) -> BoardRecord:
    """Only what belongs to the lease: health may have been changed by others in the meantime."""
    names = ("board_id", "token", "owner", "since", "deadline", "host", "pid", "born")
    return replace(record, **{name: getattr(granted, name) for name in names})


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


def _shared_leases(rack: Rack, timing: Timing) -> SharedLeases | None:
    if not rack.leases_url:
        return None
    try:
        from mcu_agent.sharedlease import SharedLeases  # only hosts that share probes need a Redis client
    except ImportError as error:
        raise InventoryError(f"[leases] url: needs the Redis client; pip install redis ({error})") from error
    return SharedLeases(rack.leases_url, lapse_s=timing.shared_s)


def lock_folder(namespace: str = "") -> Path:
    """Where this user's lock files lie on this host: ``$EDGEFRONT_LOCKS``, or a folder under the system's temporary
    one.

    ``namespace`` separates boards that exist only for one study (virtual ones) from those that all studies share.
    """
    base = os.environ.get("EDGEFRONT_LOCKS")
    folder = Path(base) if base else Path(tempfile.gettempdir()) / f"edgefront-{os.getuid()}"
    return folder / "boards" / namespace if namespace else folder / "boards"
