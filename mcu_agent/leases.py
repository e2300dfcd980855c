"""Who holds which board, and whether a board may be used: rules as pure functions on frozen records.

A board has one owner: a lock file held open for as long as the lease lasts (:mod:`mcu_agent.locks`), which the
operating system frees when the owner dies, and beside it a record of the last lease, of faults in a row, of suspicion,
quarantine and self-tests. Every lease has a token higher than the one before and a deadline; a holder past its deadline
must not touch the board any more.

Times are seconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from mcu_agent.errors import LeaseLost

RECORD_VERSION = 2
FAULTS_BEFORE_QUARANTINE = 3
AUTOMATIC = "edgefront"  # who put a board into quarantine when no person did
# After how long a quarantined board is tested again, by the number of tests it has failed since.
BACK_OFF_S = (60.0, 300.0, 900.0, 3600.0)
# A suspicion that nobody has cleared up by then is that of a program that died over it; the board is tried again.
SUSPICION_S = 600.0


class State(Enum):
    """What a board is doing, as reported to people and metrics."""

    IDLE = "idle"
    LEASED = "leased"
    STUCK = "stuck"
    SUSPECT = "suspect"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """How leases are kept alive and given up.

    A holder beats every ``beat_s``; one that has not for ``stale_s`` is *stuck*, and once its deadline is ``grace_s``
    past, whoever waits ends it. Whoever is first in the queue and leaves a free board for ``skip_s`` is passed over.
    ``poll_s`` is how soon a death is noticed that nobody could announce. Leases shared between hosts lapse ``shared_s``
    after their holder last renewed them.
    """

    beat_s: float = 2.0
    stale_s: float = 15.0
    grace_s: float = 5.0
    skip_s: float = 1.0
    poll_s: float = 0.25
    shared_s: float = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The process that holds a lease. ``born`` tells it from a later process of the same number."""

    host: str = ""
    pid: int = 0
    born: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The right to use ``board_id`` until ``deadline``."""

    board_id: str
    owner: str
    token: int
    deadline: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BoardRecord:
    """What is remembered of a board. ``quarantine`` says why it is out of use, empty when it is not, and
    ``quarantined_by`` who put it there; ``suspect`` why it is being looked into. ``test`` is what the last self-test
    found, empty where it passed, at ``tested_at``, 0 where there was none; ``failed_tests`` counts those since the
    board was last well."""

    board_id: str
    token: int = 0
    owner: str = ""
    since: float = 0.0
    deadline: float = 0.0
    host: str = ""
    pid: int = 0
    born: str = ""
    faults: int = 0
    quarantine: str = ""
    quarantined_at: float = 0.0
    quarantined_by: str = ""
    suspect: str = ""
    suspected_at: float = 0.0
    test: str = ""
    tested_at: float = 0.0
    failed_tests: int = 0

    @property
    def holder(self) -> Holder:
        """The process that took the last lease."""
        return Holder(host=self.host, pid=self.pid, born=self.born)

    def to_json(self) -> dict[str, Any]:
        return {"version": RECORD_VERSION, **{name: getattr(self, name) for name in BoardRecord.__dataclass_fields__}}

    @staticmethod
    def from_json(data: dict[str, Any]) -> BoardRecord:
        if data.get("version") != RECORD_VERSION:
            raise ValueError(f"board record has version {data.get('version')!r}; this program reads {RECORD_VERSION}")
        return BoardRecord(**{key: value for key, value in data.items() if key != "version"})


def grant(
    record: BoardRecord, owner: str, now: float, duration_s: float, *, token: int = 0, holder: Holder | None = None
) -> tuple[BoardRecord, Lease]:
    """A new lease on the board, with the next token (at least ``token``, which other hosts may have counted further).

    Raises:
        ValueError: the duration is not above 0.
    """
    if duration_s <= 0:
        raise ValueError(f"a lease of {duration_s:g} s is none")
    by = holder or Holder()
    next_token = max(record.token + 1, token)
    lease = Lease(board_id=record.board_id, owner=owner, token=next_token, deadline=now + duration_s)
    held = replace(record, token=next_token, owner=owner, since=now, deadline=lease.deadline)
    return replace(held, host=by.host, pid=by.pid, born=by.born), lease


def check(lease: Lease, record: BoardRecord, now: float | None = None) -> None:
    """Pass while ``lease`` is the board's current one and, where ``now`` is given, not past its deadline.

    Raises:
        LeaseLost: it is not; whatever is done on the board from here on is void.
    """
    if record.token != lease.token:
        raise LeaseLost(f"board {lease.board_id}: lease {lease.token} was followed by {record.token} of {record.owner}")
    if now is not None and now >= lease.deadline:
        raise LeaseLost(f"board {lease.board_id}: lease {lease.token} ended {now - lease.deadline:.1f} s ago")


def give_back(record: BoardRecord, *, now: float = 0.0, fault: str = "") -> BoardRecord:
    """The record after a lease: a fault of the rig adds to those in a row, a good end clears them, and the
    ``FAULTS_BEFORE_QUARANTINE``-th in a row takes the board out of use."""
    faults = record.faults + 1 if fault else 0
    after = replace(record, owner="", since=0.0, deadline=0.0, host="", pid=0, born="", faults=faults)
    if faults < FAULTS_BEFORE_QUARANTINE or record.quarantine:
        return after
    return quarantine(after, f"{faults} faults in a row, the last: {fault}", now=now)


def add_fault(record: BoardRecord, fault: str, *, now: float) -> BoardRecord:
    """The record after a fault of the rig outside a lease, or one that a lease has not told of."""
    after = give_back(record, now=now, fault=fault)
    names = ("owner", "since", "deadline", "host", "pid", "born")
    return replace(after, **{name: getattr(record, name) for name in names})


def quarantine(record: BoardRecord, reason: str, *, now: float, by: str = AUTOMATIC) -> BoardRecord:
    """The record of a board that is out of use until a self-test passes or a person puts it back. What a person has
    taken out stays a person's."""
    if record.quarantine and record.quarantined_by != AUTOMATIC and by == AUTOMATIC:
        return record
    out = replace(record, quarantine=reason, quarantined_at=now, quarantined_by=by)
    return replace(out, suspect="", suspected_at=0.0)


def suspect(record: BoardRecord, reason: str, *, now: float) -> BoardRecord:
    """The record of a board that is looked into before anybody else gets it."""
    return record if record.quarantine else replace(record, suspect=reason, suspected_at=now)


def clear(record: BoardRecord) -> BoardRecord:
    """The record of a board that is well again, or that a person has put back into use."""
    well = replace(record, faults=0, failed_tests=0, quarantine="", quarantined_at=0.0, quarantined_by="")
    return replace(well, suspect="", suspected_at=0.0)


def after_test(record: BoardRecord, fault: str, *, now: float) -> BoardRecord:
    """The record after a self-test that found ``fault``, empty where it passed: a board that passes is well, unless a
    person took it out of use; one that fails is quarantined."""
    after = replace(record, test=fault, tested_at=now)
    if fault:
        return quarantine(replace(after, failed_tests=record.failed_tests + 1), fault, now=now)
    return after if record.quarantined_by not in ("", AUTOMATIC) else clear(after)


def is_offered(record: BoardRecord, now: float) -> bool:
    """Whether ordinary work may have the board."""
    return not record.quarantine and not (record.suspect and now < record.suspected_at + SUSPICION_S)


def is_due(record: BoardRecord, now: float) -> bool:
    """Whether a board that was taken out of use by itself should be tested again."""
    if record.quarantine:
        if record.quarantined_by != AUTOMATIC:
            return False
        last = max(record.quarantined_at, record.tested_at)
        return now >= last + BACK_OFF_S[min(record.failed_tests, len(BACK_OFF_S) - 1)]
    return bool(record.suspect) and now >= max(record.suspected_at, record.tested_at) + BACK_OFF_S[0]


def is_stuck(record: BoardRecord, beat: float, now: float, timing: Timing) -> bool:
    """Whether a lock that is held belongs to somebody who does not come back: no beat (the last was at ``beat``), or
    the deadline long past."""
    return now >= beat + timing.stale_s or bool(record.owner and now >= record.deadline + timing.grace_s)


def state(record: BoardRecord, *, is_locked: bool, is_stuck: bool = False, now: float = 0.0) -> State:
    """What the board is doing; a lock that nobody holds any more makes an unfinished lease void."""
    if is_locked and is_stuck:
        return State.STUCK
    if record.quarantine:
        return State.QUARANTINED
    if is_locked:
        return State.LEASED
    return State.IDLE if is_offered(record, now) else State.SUSPECT
