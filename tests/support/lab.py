"""A lab without processes: children that do as they are told and end when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.records import Event
from orchestrator.registry import Entry, Orchestrator, Registry, Submission
from orchestrator.service import Lab, Service
from tests.support.studies import study_file


def submission(name: str, **changes: Any) -> Submission:
    """Of a study of eight trials, two at a time where nothing else is said."""
    fields: dict[str, Any] = {
        "name": name,
        "folder": f"/studies/{name}",
        "file": study_file(name=name, budget={"trials": 8}).to_json(),
        "source_text": "",
        "source_folder": "/home",
        "sources": {"dataset": "0" * 64},
        "submitter": "ada@host",
        "submitted_at": "2030-01-01T00:00:00+00:00",
    }
    return Submission(**{**fields, **changes})


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def now_iso(self) -> str:
        return f"2030-01-01T00:00:{self.now:012.3f}+00:00"


class FakeChild:
    """The process of a study, played by the test."""

    def __init__(self, entry: Entry, token: int, on_event: Callable[[Event], None]) -> None:
        self.entry, self.token = entry, token
        self.orders: list[tuple[str, dict[str, Any]]] = []
        self.is_killed = self.is_closed = False
        self._on_event = on_event
        self._status = ""

    @property
    def limit(self) -> int | None:
        limits = [fields["trials"] for name, fields in self.orders if name == "limit"]
        return limits[-1] if limits else None

    def told(self, name: str) -> bool:
        return name in [order for order, _ in self.orders]

    def tell(self, name: str, /, **fields: object) -> None:
        self._on_event(Event(name=name, fields=fields))

    def end(self, how: str, text: str = "", *, is_patient: bool = False) -> None:
        self.tell("ended", how=how, text=text, is_patient=is_patient)
        self._status = "its process ended with exit status 0"

    def die(self) -> None:
        self._status = "its process was ended by SIGKILL"

    def send(self, event: Event) -> None:
        self.orders.append((event.name, event.fields))

    def kill(self) -> None:
        self.is_killed = True
        self.die()

    def status(self) -> str:
        return self._status

    def close(self) -> None:
        self.is_closed = True


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ends: list[tuple[str, str]] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def tick(self) -> None:
        pass

    def ended(self, how: str, text: str) -> None:
        self.ends.append((how, text))


class FakeLab:
    """One orchestrator of a registry, with the children it has started, the latest of each study by name."""

    def __init__(self, registry: Registry, clock: ManualClock, name: str = "a", slots: int = 4) -> None:
        self.registry, self.clock, self.slots = registry, clock, slots
        self.children: dict[str, FakeChild] = {}
        self.n_started = 0
        self.gone: set[str] = set()
        self.heard: dict[str, Heard] = {}
        self.said: list[str] = []
        self.counts: Mapping[str, int] = {}
        self.me = Orchestrator(owner=name, host="host", pid=1, born=0.0)
        self.service = Service(
            Lab(
                registry=registry,
                launch=self._launch,
                listener_of=lambda entry: self.heard.setdefault(entry.name, Heard()),
                slots=lambda: self.slots,
                is_shared=True,
                is_gone=lambda other: other.owner in self.gone,
                clock=clock,
                shown=self._shown,
                say=self.said.append,
            ),
            self.me,
        )

    def tick(self, seconds: float = 1.0) -> None:
        self.clock.now += seconds
        self.service.tick()

    def state(self, name: str) -> str:
        return self.registry.entry(name).state

    def _launch(self, entry: Entry, token: int, on_event: Callable[[Event], None]) -> FakeChild:
        self.n_started += 1
        self.children[entry.name] = FakeChild(entry, token, on_event)
        return self.children[entry.name]

    def _shown(self, counts: Mapping[str, int], slots: int, shares: Mapping[str, int]) -> None:
        self.counts = counts
