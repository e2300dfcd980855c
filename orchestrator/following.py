"""Looking at a study that another process runs: its record in the database, as the events of a run and in words.

What only a run itself knows (single epochs, lengths of queues) is not in the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.ledger import STARTED, StageAttempt
from orchestrator.ports import EventSink
from orchestrator.progress import Progress, TrialProgress
from orchestrator.records import Event
from orchestrator.study import Study

# Ends of a run after which the study goes on one day.
_GOES_ON = ("interrupted", "paused")


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
        if event.name == "study_started":  # the record leaves out what the study itself says
            file = self.study.file
            event = Event(name=event.name, fields={**event.fields, "name": file.name, "budget": file.budget.trials})
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
