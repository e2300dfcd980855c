"""Who gets how many trials, and what an orchestrator does next with each study: decisions only, nothing is done here.

A slot is one trial under way. Each study that could use one gets one, in the order of priority, then of submission;
what is left is divided by weight, 2 to the power of the priority, and what a study cannot use goes to the others.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from orchestrator.registry import OPEN_STATES, PAUSE, RUN, STOP, STOPPED, Entry

LOWEST_PRIORITY, HIGHEST_PRIORITY = -5, 5
_NO_LIMIT = 1024  # as for parallelism.in_flight
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 1.0, 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What a study could use: ``could_use`` trials under way at once."""

    name: str
    priority: int
    order: int
    could_use: int


def shares(demands: Iterable[Demand], slots: int) -> dict[str, int]:
    """The slots of each study; together as many as there are, or as can be used, whichever is less.

    What is over after the first slot of each goes, one by one, to the study whose share is smallest for its weight
    (Webster's method: neither large nor small weights gain by rounding).
    """
    ordered = sorted(demands, key=lambda item: (-item.priority, item.order))
    found = {item.name: 0 for item in ordered}
    left = max(0, slots)
    for item in ordered:
        if left and item.could_use > 0:
            found[item.name], left = 1, left - 1
    heap = [(_next(item, 1), rank, item) for rank, item in enumerate(ordered) if 1 == found[item.name] < item.could_use]
    heapq.heapify(heap)
    while left and heap:
        _, rank, item = heapq.heappop(heap)
        found[item.name] += 1
        left -= 1
        if found[item.name] < item.could_use:
            heapq.heappush(heap, (_next(item, found[item.name]), rank, item))
    return found


def _next(item: Demand, share: int) -> float:
    return (share + 0.5) / 2.0**item.priority


def backoff_s(n_failures: int) -> float:
    """The pause before a study's process is started again that died ``n_failures`` times without getting on."""
    return min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** max(0, min(n_failures - 1, 30)))


class Do(Enum):
    """What an orchestrator does with a study now."""

    NOTHING = "nothing"
    START = "start"  # take it, and run it
    CLOSE = "close"  # take it, and end it for good: nobody runs it
    SHELVE = "shelve"  # take it, and give it back as paused: who was to let it pause is dead
    LIMIT = "limit"  # tell its process how many trials it may have under way
    PAUSE = "pause"  # its process begins no trial and ends after those under way
    STOP = "stop"  # its process ends at once, for good
    DROP = "drop"  # somebody else holds it: end its process without a word


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """A study as one orchestrator sees it. ``is_mine``: its process is a child here, under the token of the entry;
    ``is_free``: nobody holds it, or who does is dead; ``has_child``: a process of it runs here, under whatever token;
    ``may_start``: no pause after a failure is to be waited for."""

    entry: Entry
    is_mine: bool
    is_free: bool
    has_child: bool
    may_start: bool


def decide(sight: Sight, share: int) -> Do:
    """The next step for a study that has ``share`` slots."""
    entry = sight.entry
    if sight.has_child:
        return _decide_running(sight, share)
    if not sight.is_free or not sight.may_start:
        return Do.NOTHING
    if entry.wanted == STOP:
        return Do.CLOSE if entry.state != STOPPED else Do.NOTHING
    if entry.wanted == PAUSE and entry.state in OPEN_STATES:
        return Do.SHELVE
    return Do.START if entry.wanted == RUN and entry.state in OPEN_STATES and share > 0 else Do.NOTHING


def _decide_running(sight: Sight, share: int) -> Do:
    if not sight.is_mine:
        return Do.DROP
    if sight.entry.wanted == STOP:
        return Do.STOP
    # Without a slot it would wait at the expense of its wall-clock time; it ends and is begun again when there is one.
    return Do.PAUSE if sight.entry.wanted == PAUSE or share == 0 else Do.LIMIT


def wants_slots(sight: Sight) -> bool:
    """Whether the study takes part in the division: it runs, or would if it had a slot."""
    entry = sight.entry
    is_wanted = entry.wanted == RUN and entry.state in OPEN_STATES
    return is_wanted and (sight.may_start or sight.has_child)


def demands(sights: Iterable[Sight], *, is_shared: bool) -> list[Demand]:
    """What the studies could use. ``is_shared``: all orchestrators have the same workers, so that what other ones run
    takes part; each study may then have as many trials under way as it says, else as many as it has workers."""
    return [
        Demand(
            name=sight.entry.name,
            priority=sight.entry.priority,
            order=sight.entry.order,
            could_use=_could_use(sight.entry, is_shared=is_shared),
        )
        for sight in sights
        if wants_slots(sight) and (is_shared or sight.is_free or sight.is_mine)
    ]


def _could_use(entry: Entry, *, is_shared: bool) -> int:
    file = entry.submission.file
    workers = file["parallelism"]
    embedded = workers["train_workers"] + workers["build_workers"]
    most = workers["in_flight"] or (_NO_LIMIT if is_shared else embedded)
    wanted = file["budget"]["trials"] if entry.could_use is None else entry.could_use
    return int(max(1, min(most, wanted)))  # with all trials told the front's test is still to come
