"""The service that runs all open studies, each in a process of its own: takes them, starts, steers and supervises them.

What to do is decided by :mod:`orchestrator.scheduling`; here it is done. Everything that must survive is in the
:class:`~orchestrator.registry.Registry`: a service that is started again goes on where the last one was.

Two services on one registry never run the same study. Each shows every second that it lives. One whose number has not
grown for ``LEASE_S`` by the other's clock, or whose process is gone from this host, has lost its studies; it ends their
processes itself when it could not show itself for ``FENCE_S``, which is sooner.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from orchestrator.errors import StudyError
from orchestrator.ports import Clock
from orchestrator.records import Event
from orchestrator.registry import (
    FAILED,
    FINISHED,
    PAUSED,
    STOPPED,
    SUBMITTED,
    Entry,
    Orchestrator,
    Reached,
    Registry,
)
from orchestrator.scheduling import Do, Sight, backoff_s, decide, demands, shares

LEASE_S = 30.0
FENCE_S = 20.0
TICK_S = 1.0
_SAY_AGAIN_S = 60.0
# Deaths in a row, without a trial told in between, after which a study has failed.
MOST_DEATHS = 8
# How the process of a study ends: `ended` with one of these as `how`.
FINISHED_SO, PAUSED_SO, INTERRUPTED_SO, STOPPED_SO = "finished", "paused", "interrupted", "stopped"
FAILED_SO, AGAIN_SO = "failed", "again"
# What a listener is told of a study that is another orchestrator's business now.
ELSEWHERE = "elsewhere"
_log = logging.getLogger(__name__)


class Child(Protocol):
    """The process of a study."""

    def send(self, event: Event) -> None:
        """Pass it an order; never waits."""

    def kill(self) -> None:
        """End it at once, with all that it started; may be called twice."""

    def status(self) -> str:
        """Empty while it lives; else how it ended, in words."""

    def close(self) -> None:
        """Let go of what it leaves behind, once it has ended."""


class Listener(Protocol):
    """Who is told of a study: metrics, notifications."""

    def emit(self, event: Event) -> None: ...

    def tick(self) -> None: ...

    def ended(self, how: str, text: str) -> None:
        """The study's run is over: ``how`` is the state it is in now, or ``ELSEWHERE``."""


Launch = Callable[[Entry, int, Callable[[Event], None]], Child]


@dataclass(kw_only=True)
class _Run:
    """A study that runs here."""

    entry: Entry
    token: int
    child: Child
    listener: Listener
    reached: Reached
    told_before: int
    could_use: int | None
    limit: int | None = None
    ordered: Do = Do.NOTHING
    ended: Event | None = None
    is_changed: bool = False


@dataclass(kw_only=True)
class Lab:
    """What a service works with. ``slots`` says how many trials may be under way at once over all studies;
    ``is_shared``: workers serve the studies of all orchestrators; ``is_gone``: an orchestrator's process is known not
    to exist any more; ``shown`` is told each second how the studies stand (counts by state, slots) and each study's
    share; ``restarted`` of each study whose process has died and will be started again."""

    registry: Registry
    launch: Launch
    listener_of: Callable[[Entry], Listener]
    slots: Callable[[], int]
    is_shared: bool
    is_gone: Callable[[Orchestrator], bool]
    clock: Clock
    shown: Callable[[Mapping[str, int], int, Mapping[str, int]], None]
    restarted: Callable[[str], None] = lambda study: None
    say: Callable[[str], None] = _log.info


class Service:
    """One orchestrator, under the name ``me``. ``run`` until told to stop; single-threaded but for incoming events."""

    def __init__(self, lab: Lab, me: Orchestrator) -> None:
        self._lab = lab
        self._me = me
        self._runs: dict[str, _Run] = {}
        self._listeners: dict[str, Listener] = {}
        self._events: queue.SimpleQueue[tuple[str, int, Event]] = queue.SimpleQueue()
        self._beats: dict[str, tuple[int, float]] = {}
        self._failures: dict[str, int] = {}
        self._retry_at: dict[str, float] = {}
        self._beaten = lab.clock.monotonic()
        self._away, self._away_said_s = "", 0.0

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set; then all studies are interrupted, to be gone on with, and given back."""
        while not stop.is_set():
            self.tick()
            self.take_events(TICK_S)
        self.drain()

    def tick(self) -> None:
        """One round: show that this orchestrator lives, look at the studies, do what is to be done."""
        try:
            self._tick()
        except StudyError as error:  # the registry cannot be reached: without it nothing may begin
            silent_s = self._lab.clock.monotonic() - self._beaten
            self._say_away(str(error), silent_s)
            if silent_s >= FENCE_S and self._runs:
                self._lab.say("others may take the studies over by now: their processes are ended here")
                for name in list(self._runs):
                    self._drop(name)

    def _say_away(self, text: str, silent_s: float) -> None:
        """The same trouble once a minute, and another at once."""
        if text != self._away or silent_s - self._away_said_s >= _SAY_AGAIN_S:
            self._away, self._away_said_s = text, silent_s
            self._lab.say(f"{text} (for {silent_s:.0f} s)")

    def take_events(self, timeout_s: float) -> None:
        """Handle what studies tell, for ``timeout_s`` or until one ends."""
        clock = self._lab.clock
        deadline = clock.monotonic() + timeout_s
        while (left_s := deadline - clock.monotonic()) > 0:
            try:
                name, token, event = self._events.get(timeout=left_s)
            except queue.Empty:
                return
            run = self._runs.get(name)
            if run is not None and run.token == token:
                self._take(run, event)
                if event.name in ("ended", "gone"):
                    return

    def drain(self, grace_s: float = 30.0) -> None:
        """Interrupt all studies, wait ``grace_s`` for their processes, and give the studies back."""
        for run in self._runs.values():
            run.child.send(Event(name="interrupt"))
        deadline = self._lab.clock.monotonic() + grace_s
        while self._runs and self._lab.clock.monotonic() < deadline:
            self.take_events(0.2)
            self._quietly(self._reap)
            self._quietly(lambda: self._lab.registry.beat(self._me, self._lab.clock.now_iso()))
        for run in self._runs.values():
            run.child.kill()
        while self._runs and self._lab.clock.monotonic() < deadline + 5.0:
            self.take_events(0.1)
            self._quietly(self._reap)
        self._quietly(lambda: self._lab.registry.forget(self._me.owner))

    # -- one round -------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        registry, clock = self._lab.registry, self._lab.clock
        registry.beat(self._me, clock.now_iso())
        self._beaten = clock.monotonic()
        if self._away:
            self._away = ""
            self._lab.say("the list of studies is there again")
        self._reap()
        entries = registry.entries(is_ended=False)
        dead = self._dead(registry.orchestrators(), entries)
        sights = [self._sight(entry, dead) for entry in entries]
        self._drop_unlisted({entry.name for entry in entries})
        slots = self._lab.slots()
        found = shares(demands(sights, is_shared=self._lab.is_shared), slots)
        for sight in sights:
            self._do(decide(sight, found.get(sight.entry.name, 0)), sight, found.get(sight.entry.name, 0))
        self._keep_company(registry.edited_names())
        self._lab.shown(registry.counts(), slots, {name: run.limit or 0 for name, run in self._runs.items()})

    def _sight(self, entry: Entry, dead: set[str]) -> Sight:
        run = self._runs.get(entry.name)
        is_held_here = entry.owner == self._me.owner
        return Sight(
            entry=entry,
            is_mine=run is not None and is_held_here and run.token == entry.token,
            # Held by this orchestrator without a process: it was dropped, or died between the two.
            is_free=not entry.owner or entry.owner in dead or (is_held_here and run is None),
            has_child=run is not None,
            may_start=self._retry_at.get(entry.name, 0.0) <= self._lab.clock.monotonic(),
        )

    def _dead(self, orchestrators: Iterable[Orchestrator], entries: Iterable[Entry]) -> set[str]:
        """The owners of studies that are known to be gone."""
        now = self._lab.clock.monotonic()
        known = {other.owner: other for other in orchestrators}
        self._beats = {
            owner: self._beats[owner] if self._beats.get(owner, (0, 0.0))[0] == other.beat else (other.beat, now)
            for owner, other in known.items()
        }
        silent = {owner for owner, (_, since) in self._beats.items() if now - since >= LEASE_S}
        gone = {owner for owner, other in known.items() if self._lab.is_gone(other)}
        owners = {entry.owner for entry in entries if entry.owner}
        dead = ((silent | gone) | (owners - set(known))) - {self._me.owner}
        for owner in (dead & set(known)) - owners:
            self._lab.registry.forget(owner)
        return dead

    def _do(self, what: Do, sight: Sight, share: int) -> None:
        name = sight.entry.name
        if what in (Do.START, Do.CLOSE):
            self._start(sight.entry, share, is_closing=what is Do.CLOSE)
        elif what is Do.SHELVE:
            self._shelve(sight.entry)
        elif what is Do.DROP:
            self._lab.say(f"study {name} is run by another orchestrator now; its process here is ended")
            self._drop(name)
        elif what is Do.LIMIT:
            self._limit(self._runs[name], share)
        elif what in (Do.PAUSE, Do.STOP) and self._runs[name].ordered is not what:
            self._runs[name].ordered = what
            self._runs[name].child.send(Event(name=what.value))

    def _start(self, entry: Entry, share: int, *, is_closing: bool) -> None:
        token = self._lab.registry.take(entry, self._me.owner, self._lab.clock.now_iso())
        if token is None:
            return  # another orchestrator was faster
        listener = self._listeners.get(entry.name) or self._lab.listener_of(entry)
        self._listeners[entry.name] = listener
        held = replace(entry, owner=self._me.owner, token=token)
        try:
            child = self._lab.launch(held, token, lambda event: self._events.put((entry.name, token, event)))
        except OSError as error:
            self._failures[entry.name] = self._failures.get(entry.name, 0) + 1
            self._give_back(entry.name, token, SUBMITTED, f"its process cannot be started: {error}", is_retried=True)
            return
        run = _Run(
            entry=held,
            token=token,
            child=child,
            listener=listener,
            reached=entry.reached,
            told_before=entry.reached.told,
            could_use=entry.could_use,
        )
        self._runs[entry.name] = run
        self._lab.say(f"study {entry.name}: " + ("stopping for good" if is_closing else f"running, {share} at once"))
        if is_closing:
            run.ordered = Do.STOP
            child.send(Event(name=Do.STOP.value))
        else:
            self._limit(run, share)

    def _shelve(self, entry: Entry) -> None:
        token = self._lab.registry.take(entry, self._me.owner, self._lab.clock.now_iso())
        if token is not None:
            self._give_back(entry.name, token, PAUSED, "", is_retried=False)

    def _limit(self, run: _Run, share: int) -> None:
        if run.limit != share or run.ordered is not Do.LIMIT:
            run.limit, run.ordered = share, Do.LIMIT
            run.child.send(Event(name="limit", fields={"trials": share}))

    def _keep_company(self, edited: set[str]) -> None:
        """Show the processes that their service lives, tell them of edits, and note how far they are."""
        for name in edited - set(self._runs):
            self._lab.registry.reopen(name, self._lab.clock.now_iso())  # it finished as it was being edited
        for name, run in self._runs.items():
            run.child.send(Event(name="beat"))
            if name in edited:
                run.child.send(Event(name="edits"))
            run.listener.tick()
            if run.is_changed:
                self._lab.registry.note(name, run.token, run.reached, run.could_use, "")
                run.is_changed = False

    # -- what studies tell -----------------------------------------------------------------------------------------

    def _take(self, run: _Run, event: Event) -> None:
        if event.name == "ended":
            run.ended = event
        elif event.name == "could_use":
            run.could_use, run.is_changed = int(event.fields["trials"]), True
        elif event.name != "gone":
            run.reached, before = _reached(run.reached, event), run.reached
            run.is_changed |= run.reached != before
            run.listener.emit(event)

    # -- ends ------------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for name, run in list(self._runs.items()):
            status = run.child.status()
            if status:
                run.child.close()
                self._take_rest(name, run)
                del self._runs[name]
                self._end(name, run, status)

    def _take_rest(self, name: str, run: _Run) -> None:
        """What it still told before it ended; the others' are put back behind."""
        others = []
        while not self._events.empty():
            about, token, event = self._events.get()
            if (about, token) == (name, run.token):
                self._take(run, event)
            else:
                others.append((about, token, event))
        for other in others:
            self._events.put(other)

    def _end(self, name: str, run: _Run, status: str) -> None:
        fields = run.ended.fields if run.ended is not None else {}
        how, text = str(fields.get("how", AGAIN_SO)), str(fields.get("text", "") or status)
        if run.reached.told > run.told_before:
            self._failures.pop(name, None)
        self._lab.registry.note(name, run.token, run.reached, run.could_use, text)
        state = self._state_after(name, run, how, is_patient=bool(fields.get("is_patient")))
        # What must be said again is a reason; what a study says at its ordinary end is in its report.
        reason = text if state == FAILED or how == AGAIN_SO else ""
        self._give_back(name, run.token, state, reason, is_retried=how == AGAIN_SO and state == SUBMITTED)
        run.listener.ended(state, text)
        if state not in (SUBMITTED, PAUSED):
            self._listeners.pop(name, None)

    def _state_after(self, name: str, run: _Run, how: str, *, is_patient: bool) -> str:
        if how in (FINISHED_SO, STOPPED_SO):
            return FINISHED if how == FINISHED_SO else STOPPED
        if run.ordered is Do.STOP and how in (FAILED_SO, AGAIN_SO):
            return STOPPED  # it was to end anyway
        if how == FAILED_SO:
            return FAILED
        if how == AGAIN_SO:
            self._failures[name] = self._failures.get(name, 0) + 1
            self._lab.restarted(name)
            if self._failures[name] >= MOST_DEATHS and not is_patient:
                self._failures.pop(name)
                return FAILED
        return SUBMITTED

    def _give_back(self, name: str, token: int, state: str, reason: str, *, is_retried: bool) -> None:
        registry, clock = self._lab.registry, self._lab.clock
        if is_retried:
            pause_s = backoff_s(self._failures.get(name, 1))
            self._retry_at[name] = clock.monotonic() + pause_s
            reason = f"{reason.rstrip('.')}; tried again after {pause_s:g} s"
        self._lab.say(
            f"study {name}: {reason}" if is_retried else f"study {name}: {state}{': ' * bool(reason)}{reason}"
        )
        registry.release(name, token, state, reason, clock.now_iso())

    def _drop(self, name: str) -> None:
        """End the process of a study that is no longer ours, and say nothing to the registry."""
        run = self._runs.pop(name)
        run.child.kill()
        run.child.close()
        run.listener.ended(ELSEWHERE, "")
        self._listeners.pop(name, None)

    def _drop_unlisted(self, listed: set[str]) -> None:
        for name in set(self._runs) - listed:
            self._drop(name)

    def _quietly(self, action: Callable[[], None]) -> None:
        try:
            action()
        except StudyError as error:
            self._lab.say(str(error))


def _reached(before: Reached, event: Event) -> Reached:
    fields = event.fields
    if event.name == "study_started":
        return replace(before, budget=int(fields.get("budget", 0)), told=0, hypervolume=0.0, front_size=0)
    if event.name == "study_resumed":
        return replace(before, told=int(fields.get("told", 0)))
    if event.name == "trial_ended" and fields.get("ending") != "fault":
        return replace(before, told=before.told + 1)
    if event.name == "front_changed":
        return replace(before, hypervolume=float(fields["hypervolume"]), front_size=int(fields["front_size"]))
    return before
