"""Looking at a study that another process runs: its record in the database, as the events of a run and as lines.

What only a run itself knows (single epochs, lengths of queues) is not in the record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.ledger import STARTED, StageAttempt
from orchestrator.ports import EventSink
from orchestrator.progress import Progress, TrialProgress
from orchestrator.records import Event, Json
from orchestrator.study import FINAL_STAGE, Study

# Ends of a run after which the study goes on one day.
_GOES_ON = ("interrupted", "paused")
_MOST_BYTES = 64 * 1024


def standing(study: Study, progress: Progress) -> None:
    """Bring a new ``progress`` to where the study is, as if it had seen all of it."""
    trials = study.trials()
    ended = sorted((trial for trial in trials if trial.ended_at), key=lambda trial: str(trial.ended_at))
    history = study.hypervolume_history()
    with progress.lock:
        progress.name, progress.budget = study.file.name, study.file.budget.trials
        progress.told_before = len(history)
        progress.hypervolumes = [value for _, value in history]
        progress.front_size = len(study.front())
        errors = []
        for trial in ended:
            values = {name: value.amount for name, value in trial.outcome.values.items()} if trial.outcome else {}
            errors += [values["error"]] if trial.state == "complete" and "error" in values else []
            progress.ended.append(TrialProgress(number=trial.number, state=trial.state, values=values))
        progress.best_error = min(errors, default=None)


@dataclass(kw_only=True)
class Follower:
    """Reads what is new in the record of a study, each time :meth:`poll` is called, and passes it on as events.

    It begins with what happens from now on; ``is_over`` once the study's run has come to its end.
    """

    study: Study
    sink: EventSink
    is_over: bool = False
    _seen: int = -1
    _states: dict[tuple[int, str, int], str] = field(default_factory=dict)

    def poll(self) -> None:
        """
        Raises:
            StudyError: the record cannot be read.
        """
        with self.study.guarded():
            if self._seen < 0:
                self._seen = len(self.study.ledger.events_from(0))
            events = self.study.ledger.events_from(self._seen)
            attempts = [item for item in self.study.ledger.attempts() if item.is_open]
        self._seen += len(events)
        for attempt in attempts:
            self._tell_attempt(attempt)
        for _, event in events:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        if event.name == "study_resumed":  # what it counts was seen already
            return
        if event.name == "study_finished":
            self.is_over = event.fields.get("reason") not in _GOES_ON
        if event.name == "study_stopped":
            self.is_over = True
        self.sink.emit(event)

    def _tell_attempt(self, attempt: StageAttempt) -> None:
        key = (attempt.trial, attempt.stage, attempt.attempt)
        if self._states.get(key) == attempt.state:
            return
        self._states[key] = attempt.state
        name = "stage_started" if attempt.state == STARTED else "stage_queued"
        about = {"trial": attempt.trial, "stage": attempt.stage, "attempt": attempt.attempt}
        worker = {"worker": attempt.worker} if attempt.state == STARTED else {}
        self.sink.emit(Event(name=name, fields={**about, **worker}))


def event_text(event: Event) -> str:
    """An event of the record in words."""
    write = _TEXTS.get(event.name)
    return write(event.fields) if write else " ".join([event.name, *(f"{k}={v}" for k, v in event.fields.items())])


def _trial_text(fields: Mapping[str, Any]) -> str:
    reason = f": {fields['reason']}" if fields.get("reason") else ""
    return f"trial {fields['trial']} {fields['ending']}{reason}"


def _fault_text(fields: Mapping[str, Any]) -> str:
    at = f"trial {fields['trial']}, {fields['stage']}, attempt {fields.get('attempt', 1)}"
    return f"fault in {at}: {fields['reason']}: {str(fields.get('detail', '')).partition(chr(10))[0]}"


_TEXTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "study_started": lambda fields: "the study begins",
    "study_resumed": lambda fields: f"the study goes on after {fields.get('told', 0)} trials",
    "study_finished": lambda fields: f"the run ends ({fields.get('reason', '')}): {fields.get('text', '')}",
    "study_stopped": lambda fields: str(fields.get("text", "")),
    "study_edited": lambda fields: f"edited: {fields.get('text', '')}",
    "front_changed": lambda fields: f"hypervolume {fields['hypervolume']:.4f}, {fields['front_size']} on the front",
    "trial_ended": _trial_text,
    "fault": _fault_text,
}


@dataclass(kw_only=True)
class LogReader:
    """The study's record and the files of its ``logs`` folder as lines, each once; ``trial`` keeps what is about it."""

    study: Study
    trial: int | None = None
    _seen: int = 0
    _offsets: dict[Path, int] = field(default_factory=dict)

    def events(self) -> Iterator[Json]:
        """What is new in the record: ``{"time", "event", …fields}``."""
        with self.study.guarded():
            found = self.study.ledger.events_from(self._seen)
        self._seen += len(found)
        for at, event in found:
            if self.trial is None or event.fields.get("trial") == self.trial:
                yield {"time": at, "event": event.name, **event.fields}

    def lines(self) -> Iterator[tuple[str, str]]:
        """What is new in the files: the file's name without its ending, and a line. Of a file seen for the first time
        the last 64 KiB count."""
        pattern = "*.log" if self.trial is None else f"trial-{self.trial}-*.txt"
        for path in sorted((self.study.folder / "logs").glob(pattern)):
            for line in self._new_lines(path):
                yield path.stem, line

    def _new_lines(self, path: Path) -> list[str]:
        size = path.stat().st_size
        start = self._offsets.get(path, max(0, size - _MOST_BYTES))
        if size < start:  # begun anew
            start = 0
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[path] = start + len(whole)
        return whole.decode(errors="replace").splitlines()


def attempt_lines(study: Study, trial: int) -> Iterator[Json]:
    """The stages of one trial, each attempt with its times, its worker and how it ended."""
    for attempt in study.stage_attempts():
        if attempt.trial == trial:
            yield {
                "time": attempt.queued_at,
                "event": "test_split" if attempt.stage == FINAL_STAGE else "stage",
                "trial": trial,
                "stage": attempt.stage,
                "attempt": attempt.attempt,
                "state": attempt.state,
                "started_at": attempt.started_at,
                "ended_at": attempt.ended_at,
                "seconds": attempt.seconds,
                "worker": attempt.worker,
                "fault": attempt.fault.to_json() if attempt.fault else None,
            }


def log_text(line: Json) -> str:
    """A line of :class:`LogReader` or :func:`attempt_lines` for people."""
    fields = {name: value for name, value in line.items() if name not in ("time", "event")}
    if line["event"] in ("stage", "test_split"):
        took = f", {line['seconds']:.1f} s" if line["seconds"] is not None else ""
        fault = f", {line['fault']['reason']}: {line['fault']['detail']}" if line["fault"] else ""
        text = f"{line['stage']} attempt {line['attempt']}: {line['state']}{took} on {line['worker'] or '–'}{fault}"
    else:
        text = event_text(Event(name=line["event"], fields=fields))
    return f"{line['time']}  {text}"


def json_line(line: Json) -> str:
    return json.dumps(line, default=str)
