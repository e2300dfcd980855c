"""How a study's hypervolume rose, as its pages draw it: judged throughout by the limits that hold now, with a mark
where they were tightened. One course for the report and the live page alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from orchestrator.objectives import Objectives
from orchestrator.quantities import rounded, title
from orchestrator.reading import Told, history_of
from orchestrator.records import Event
from orchestrator.studyfile import OBJECTIVE_UNITS


class Ended(Told, Protocol):
    """A trial that was told, with the stamp of its end."""

    @property
    def ended_at(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Tightening:
    """Limits that were tightened: when (UTC stamp), and in words."""

    at: str
    text: str


def gains(trials: Iterable[Ended], objectives: Objectives) -> list[tuple[float, float]]:
    """When the hypervolume rose (seconds since the epoch), and to what."""
    rows = list(trials)
    stamps = {row.told: row.ended_at for row in rows if row.told is not None}
    found, last = [], 0.0
    for n_told, value in history_of(rows, objectives):
        stamp = stamps.get(n_told)
        if value != last and stamp:
            found.append((seconds(stamp), value))
        last = value
    return found


def tightenings(events: Iterable[tuple[str, Event]]) -> list[Tightening]:
    """The edits that tightened limits, among a study's stamped events."""
    found, known = [], dict[str, float]()
    for stamp, event in events:
        limits = event.fields.get("edit", {}).get("limits", {}) if event.name == "study_edited" else {}
        new = {name: limit for name, limit in limits.items() if known.get(name) != limit}
        known.update(new)
        if new:
            found.append(Tightening(at=stamp, text=", ".join(_text(name, limit) for name, limit in new.items())))
    return found


def _text(name: str, limit: float) -> str:
    return f"{title(name).removesuffix(' (validation)')} ≤ {rounded(limit, OBJECTIVE_UNITS.get(name, '1'), name)}"


def told_before(marks: Sequence[Tightening], trials: Iterable[Ended]) -> list[tuple[int, str]]:
    """The marks on an axis of trials: how many were told by then, and the words."""
    ends = sorted(seconds(row.ended_at) for row in trials if row.told is not None and row.ended_at)
    return [(sum(end <= seconds(mark.at) for end in ends), mark.text) for mark in marks]


def seconds(stamp: str) -> float:
    """An ISO stamp as seconds since the epoch."""
    return datetime.fromisoformat(stamp).timestamp()
