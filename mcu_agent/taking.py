"""Taking a board and giving it back: lock, lease between hosts, queue, and holders that do not come back."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mcu_agent.errors import InventoryError, NoBoardFree
from mcu_agent.holding import Holding
from mcu_agent.leases import BoardRecord, Timing, grant, is_offered
from mcu_agent.locks import BoardLock
from mcu_agent.processes import end, this_process
from mcu_agent.rack import Rack, RackBoard
from mcu_agent.waiting import Place, Queue

if TYPE_CHECKING:
    from mcu_agent.sharedlease import SharedLease, SharedLeases

_BUSY_POLL_S = 0.1  # while somebody ahead in the queue has yet to take a free board
_BACK_POLL_S = 2.0  # of those who are not next: they are woken when they are
_LOOKS = 8  # at a silent holder, until it is called stale


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What somebody asks for: one of ``entries``, whose health does not matter if ``is_test``."""

    entries: tuple[RackBoard, ...]
    owner: str
    duration_s: float
    is_test: bool


@dataclass(slots=True)
class _Watch:
    """What one who waits has seen of holders: token and beat of each rig, and since when they have stood still."""

    next_look: float
    seen: dict[str, tuple[tuple[int, float], float]] = field(default_factory=dict)


class Taker:
    """Takes boards of a rack, with lock files in ``folder``. Thread-safe."""

    def __init__(self, rack: Rack, folder: Path, timing: Timing, now: Callable[[], float]) -> None:
        self.queue = Queue(folder / "queue")
        self._folder = folder
        self._timing = timing
        self._now = now
        self._shared = _shared_leases(rack, timing)
        self._looked_at: dict[str, BoardLock] = {}  # never held, so that all threads may look through them
        self._held: set[str] = set()  # rigs that this very object has given away, which need not be asked for

    def lock(self, entry: RackBoard) -> BoardLock:
        """The lock of a board's rig, not held."""
        return BoardLock(self._folder, entry.rig, entry.board_id)

    def look(self, entry: RackBoard) -> BoardLock:
        """The same lock, to look at only."""
        found = self._looked_at.get(entry.board_id)
        if found is None:
            found = self._looked_at[entry.board_id] = self.lock(entry)
        return found

    def take(self, wish: Wish, wait_s: float) -> Holding | None:
        """A board, if one becomes free within ``wait_s`` when it is this one's turn; else None.

        Raises:
            NoBoardFree: the Redis that hosts share does not answer.
        """
        started, silence = time.monotonic(), None
        until, watch = started + wait_s, _Watch(next_look=started + self._timing.stale_s / _LOOKS)
        with self.queue.join([entry.rig for entry in wish.entries]) as place:
            while True:
                try:
                    holding, pause_s = self._attempt(wish, place, watch)
                except NoBoardFree as error:  # a Redis that is being restarted
                    holding, pause_s, silence = None, _BUSY_POLL_S, error
                left_s = until - time.monotonic()
                if holding is not None or left_s <= 0:
                    break
                place.wait(min(left_s, pause_s))
        if holding is None and silence is not None:
            raise silence
        if holding is not None and any(self._is_free(entry, wish) for entry in wish.entries):
            self.queue.wake(place.ticket.rigs)  # several came back at once, and this one was woken for all of them
        return holding

    def give_back(self, holding: Holding, fault: str = "") -> None:
        """End a lease and tell the next who waits."""
        try:
            self._held.discard(holding.entry.rig)
            holding.give_back(fault)
        finally:
            self.queue.wake([holding.entry.rig])

    def holder_elsewhere(self, entry: RackBoard) -> str:
        """Who on another host has the board; empty where nobody has."""
        return self._shared.holder(entry.rig) if self._shared is not None and self._is_shared(entry) else ""

    def _attempt(self, wish: Wish, place: Place, watch: _Watch) -> tuple[Holding | None, float]:
        """A holding, if it is this one's turn and a board is free; else how long to wait before looking again."""
        ahead, free = place.ahead(), list[RackBoard]()
        for entry in wish.entries:
            if self._is_free(entry, wish):
                holding = None if ahead else self._try(entry, wish)
                if holding is not None:
                    return holding, 0.0
                free.append(entry)
            if ahead and len(free) > len(ahead):
                break
        self._look_after(wish, watch)
        if ahead:
            rig, is_claimed = place.turn(ahead, [entry.rig for entry in free], self._timing.skip_s)
            mine = next((entry for entry in free if entry.rig == rig), None)
            holding = self._try(mine, wish) if mine else None
            if holding is not None:
                return holding, 0.0
            if is_claimed:
                return None, min(_BUSY_POLL_S, self._timing.poll_s)
        is_next = len(ahead) <= 1  # two of them, in case one sleeps
        return None, self._timing.poll_s if is_next else max(_BACK_POLL_S, self._timing.poll_s)

    def _is_free(self, entry: RackBoard, wish: Wish) -> bool:
        if entry.rig in self._held:
            return False
        lock = self.look(entry)
        if lock.is_held_by_anyone():
            return False
        return wish.is_test or is_offered(lock.read(), self._now())

    def _look_after(self, wish: Wish, watch: _Watch) -> None:
        """End holders that have not beaten for as long as this one has watched, and are past their deadline. Watching
        is by a clock of our own, because the time of day jumps, on hosts that have just found a time server."""
        clock = time.monotonic()
        if clock < watch.next_look:
            return
        watch.next_look = clock + self._timing.stale_s / _LOOKS
        for entry in wish.entries:
            if entry.rig not in self._held:
                self._look_at(entry, watch, clock)

    def _look_at(self, entry: RackBoard, watch: _Watch, clock: float) -> None:
        lock = self.look(entry)
        if not lock.is_held_by_anyone():
            watch.seen.pop(entry.rig, None)
            return
        record = lock.read()
        now_seen = (record.token, lock.last_beat())
        seen, since = watch.seen.get(entry.rig, (None, clock))
        if seen != now_seen:
            watch.seen[entry.rig] = (now_seen, clock)
            return
        is_past = bool(record.owner) and self._now() >= record.deadline + self._timing.grace_s
        if is_past and clock - since >= self._timing.stale_s:
            end(record.holder)

    def _try(self, entry: RackBoard, wish: Wish) -> Holding | None:
        lock = self.lock(entry)
        if not lock.acquire():
            return None
        try:
            holding = self._granted(entry, lock, wish)
        except BaseException:
            lock.release()
            raise
        if holding is None:  # out of use, or another host's
            lock.release()
        else:
            self._held.add(entry.rig)
        return holding

    def _granted(self, entry: RackBoard, lock: BoardLock, wish: Wish) -> Holding | None:
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


def _with_lease(record: BoardRecord, granted: BoardRecord) -> BoardRecord:
    """Only what belongs to the lease: health may have been changed by others in the meantime."""
    names = ("board_id", "token", "owner", "since", "deadline", "host", "pid", "born")
    return replace(record, **{name: getattr(granted, name) for name in names})


def _shared_leases(rack: Rack, timing: Timing) -> SharedLeases | None:
    if not rack.leases_url:
        return None
    try:
        from mcu_agent.sharedlease import SharedLeases  # only hosts that share probes need a Redis client
    except ImportError as error:
        raise InventoryError(f"[leases] url: needs the Redis client; pip install redis ({error})") from error
    return SharedLeases(rack.leases_url, lapse_s=timing.shared_s)
