"""The queue of those who wait for a board: served in the order of arrival, across threads and processes of a host.

Whoever waits has a ticket: a named pipe that it keeps open for reading. A ticket whose owner has died has no reader
any more, which the operating system tells whoever opens it, and is removed. Whoever gives a board back writes a byte
to those who are next, so nobody has to ask again and again.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import select
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mcu_agent.locks import close, make_folder, open_until_fork, share

_WOKEN = 2  # the next in the queue, and one more in case it sleeps
_FORGOTTEN = 256  # tickets that have gone, before they are forgotten
_serial = itertools.count()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """One who waits: ``name`` sorts by arrival, ``rigs`` are those it would take."""

    name: str
    rigs: tuple[str, ...]


def assign(tickets: Sequence[Ticket], free: Sequence[str]) -> dict[str, str]:
    """Which ticket takes which of the free rigs: in the order of arrival, each the first it would take."""
    left, found = list(free), dict[str, str]()
    for ticket in tickets:
        rig = next((rig for rig in ticket.rigs if rig in left), None)
        if rig is not None:
            left.remove(rig)
            found[ticket.name] = rig
    return found


class Queue:
    """The tickets in ``folder``. Thread-safe, as far as each thread joins for itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[str, ...]] = {}  # what a ticket says never changes

    @contextmanager
    def join(self, rigs: Sequence[str]) -> Iterator[Place]:
        """A place at the end of the queue for any of ``rigs``, given up at the end of the block."""
        make_folder(self._folder)
        name = f"{time.monotonic_ns():020d}-{os.getpid()}-{next(_serial)}"
        pipe, hidden = self._folder / name, self._folder / f".{name}"
        wish = self._folder / f"{name}.json"
        wish.write_text(json.dumps(list(rigs)), encoding="utf-8")
        os.mkfifo(hidden, 0o660)
        share(wish)
        share(hidden)
        # Opened before it has its name, so that nobody finds it without a reader; for writing, too, so that it never
        # comes to its end.
        file = open_until_fork(hidden, os.O_RDWR | os.O_NONBLOCK)
        try:
            hidden.rename(pipe)
            yield Place(self, Ticket(name=name, rigs=tuple(rigs)), file)
        finally:
            close(file)
            self.remove(name)
            hidden.unlink(missing_ok=True)

    def waiting(self) -> list[Ticket]:
        """All who wait, in the order of their arrival; what the dead have left is removed."""
        return self._tickets([name for name in self._names() if self.is_alive(name)])

    def before(self, name: str) -> list[Ticket]:
        """All tickets from before ``name``, those of the dead included."""
        return self._tickets([one for one in self._names() if one < name])

    def is_alive(self, name: str) -> bool:
        """Whether somebody still waits with this ticket."""
        return self._touch(name, b"")

    def wake(self, rigs: Collection[str]) -> None:
        """Tell the next who would take one of ``rigs`` to look again."""
        woken = 0
        for name in self._names():
            if not set(rigs).isdisjoint(self._rigs(name) or ()) and self._touch(name, b"!"):
                woken += 1
            if woken == _WOKEN:
                return

    def _tickets(self, names: Sequence[str]) -> list[Ticket]:
        wishes = [(name, self._rigs(name)) for name in names]
        return [Ticket(name=name, rigs=rigs) for name, rigs in wishes if rigs is not None]

    def _names(self) -> list[str]:
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - names are all that is needed, thousands of times
        except FileNotFoundError:
            return []
        tickets = sorted(name for name in names if name[0] != "." and not name.endswith(".json"))
        if len(self._known) > len(tickets) + _FORGOTTEN:
            self._known = {name: rigs for name, rigs in self._known.copy().items() if name in tickets}
        return tickets

    def _rigs(self, name: str) -> tuple[str, ...] | None:
        known = self._known.get(name)
        if known is not None:
            return known
        try:
            rigs = tuple(json.loads((self._folder / f"{name}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None  # just leaving
        self._known[name] = rigs
        return rigs

    def _touch(self, name: str, data: bytes) -> bool:
        """Write to a ticket; False where nobody reads it any more."""
        try:
            file = os.open(self._folder / name, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO:
                self.remove(name)
            return False
        try:
            if data:
                os.write(file, data)
        except BlockingIOError:  # full of bytes: it will wake from those
            return True
        except BrokenPipeError:  # it has left this moment
            return False
        finally:
            os.close(file)
        return True

    def remove(self, name: str) -> None:
        """Take a ticket out of the queue; harmless when it is not there."""
        self._known.pop(name, None)
        for path in (self._folder / name, self._folder / f"{name}.json"):
            path.unlink(missing_ok=True)


class Place:
    """A place in the queue; :meth:`Queue.join` gives one."""

    def __init__(self, queue: Queue, ticket: Ticket, file: int) -> None:
        self._queue = queue
        self._file = file
        self._left_alone: dict[tuple[str, str], float] = {}
        self.ticket = ticket

    def wait(self, seconds: float) -> None:
        """Wait to be woken, at most ``seconds``."""
        poll = select.poll()
        poll.register(self._file, select.POLLIN)
        if poll.poll(max(seconds, 0.0) * 1000):
            os.read(self._file, 4096)

    def ahead(self) -> list[Ticket]:
        """Those who came earlier and want one of the same rigs, the dead among them until :meth:`turn`."""
        mine = set(self.ticket.rigs)
        return [ticket for ticket in self._queue.before(self.ticket.name) if not mine.isdisjoint(ticket.rigs)]

    def turn(self, ahead: Sequence[Ticket], free: Sequence[str], skip_s: float) -> tuple[str | None, bool]:
        """Which of the free rigs is this place's to take, and whether somebody ahead is being waited for. Whoever ahead
        has left the same free rig alone for ``skip_s`` is passed over, and loses its ticket: it may still come, but
        nobody waits for it any more."""
        now = time.monotonic()
        claimed = assign(ahead, free)
        dead = {name for name in claimed if not self._queue.is_alive(name)}
        if dead:
            return self.turn([ticket for ticket in ahead if ticket.name not in dead], free, skip_s)
        self._left_alone = {claim: self._left_alone.get(claim, now) for claim in claimed.items()}
        asleep = {name for (name, _), since in self._left_alone.items() if now - since >= skip_s}
        for name in asleep:
            self._queue.remove(name)
        awake = [ticket for ticket in ahead if ticket.name not in asleep]
        return assign([*awake, self.ticket], free).get(self.ticket.name), bool(claimed)
