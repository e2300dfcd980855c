"""What a study looks like right now, folded from its events."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.records import Event

FINAL_STAGE = "final"
_KEPT_ENDED = 200  # more than any terminal shows


@dataclass(slots=True)
class TrialProgress:
    """One trial on its way; ``since_s`` is the monotonic time at which its present state began."""

    number: int
    state: str = "proposed"
    stage: str = ""
    attempt: int = 1
    worker: str = ""
    since_s: float = 0.0
    epoch: int = 0
    epochs: int = 0
    accuracy: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    reason: str = ""


class Progress:
    """An :class:`~orchestrator.ports.EventSink` that only remembers; another thread may read it under ``lock``."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.lock = threading.RLock()
        self.name = ""
        self.budget = 0
        self.started_s = monotonic()
        self.told_before = 0
        self.endings: dict[str, int] = {}
        self.running: dict[int, TrialProgress] = {}
        self.ended: deque[TrialProgress] = deque(maxlen=_KEPT_ENDED)
        self.hypervolumes: list[float] = []
        self.front_size = 0
        self.best_error: float | None = None
        self.faults = 0
        self.queues: dict[str, int] = {}
        self.boards: dict[str, int] = {}
        self.finished: str | None = None

    @property
    def told(self) -> int:
        """Trials that count towards the budget: all but faults, those of earlier runs included."""
        return self.told_before + sum(count for ending, count in self.endings.items() if ending != "fault")

    @property
    def hypervolume(self) -> float:
        return self.hypervolumes[-1] if self.hypervolumes else 0.0

    def elapsed_s(self) -> float:
        return self._monotonic() - self.started_s

    def seconds_left(self) -> float | None:
        """Time to the end of the budget at the pace of this run; None until the first trial has ended."""
        here = self.told - self.told_before
        if here == 0 or self.budget == 0:
            return None
        return max(0.0, (self.budget - self.told) * self.elapsed_s() / here)

    def emit(self, event: Event) -> None:
        handler = _HANDLERS.get(event.name)
        if handler is not None:
            with self.lock:
                handler(self, event.fields)

    def trial(self, number: int) -> TrialProgress:
        if number not in self.running:
            self.running[number] = TrialProgress(number=number, since_s=self._monotonic())
        return self.running[number]

    def _on_study_started(self, fields: Mapping[str, Any]) -> None:
        # Said again when a running study was edited: what is known of its trials may be judged anew.
        self.name, self.budget = str(fields.get("name", "")), int(fields.get("budget", 0))
        self.endings, self.hypervolumes, self.front_size = {}, [], 0
        self.started_s = self._monotonic()

    def _on_study_edited(self, fields: Mapping[str, Any]) -> None:
        self.budget = (fields.get("edit") or {}).get("trials") or self.budget

    def _on_study_resumed(self, fields: Mapping[str, Any]) -> None:
        self.told_before = int(fields.get("told", 0))

    def _on_trial_proposed(self, fields: Mapping[str, Any]) -> None:
        self.trial(fields["trial"])

    def _on_stage_queued(self, fields: Mapping[str, Any]) -> None:
        self._move(fields, "queued")

    def _on_stage_started(self, fields: Mapping[str, Any]) -> None:
        self._move(fields, "running")

    def _move(self, fields: Mapping[str, Any], state: str) -> None:
        trial = self.trial(fields["trial"])
        trial.state, trial.stage, trial.since_s = state, str(fields["stage"]), self._monotonic()
        trial.attempt, trial.worker = int(fields.get("attempt", 1)), str(fields.get("worker", ""))
        trial.epoch = trial.epochs = 0
        trial.accuracy = None

    def _on_stage_finished(self, fields: Mapping[str, Any]) -> None:
        if fields["stage"] == FINAL_STAGE:  # comes after the trial's end, so nothing else takes it off the screen
            self.running.pop(fields["trial"], None)

    def _on_epoch_finished(self, fields: Mapping[str, Any]) -> None:
        trial = self.running.get(fields["trial"])
        if trial is not None:
            trial.epoch, trial.epochs = int(fields.get("epoch", 0)), int(fields.get("epochs", 0))
            trial.accuracy = fields.get("accuracy")

    def _on_trial_ended(self, fields: Mapping[str, Any]) -> None:
        trial = self.running.pop(fields["trial"], None) or TrialProgress(number=fields["trial"])
        trial.state, trial.reason = str(fields["ending"]), str(fields.get("reason") or "")
        trial.values = {name: amount_of(value) for name, value in (fields.get("values") or {}).items()}
        self.endings[trial.state] = self.endings.get(trial.state, 0) + 1
        self.ended.append(trial)
        error = trial.values.get("error")
        if trial.state == "complete" and error is not None:
            self.best_error = error if self.best_error is None else min(self.best_error, error)
        if trial.state != "fault":
            self.hypervolumes.append(self.hypervolume)

    def _on_front_changed(self, fields: Mapping[str, Any]) -> None:
        hypervolume = float(fields["hypervolume"])
        if self.hypervolumes:
            self.hypervolumes[-1] = hypervolume
        else:
            self.hypervolumes.append(hypervolume)
        self.front_size = int(fields["front_size"])

    def _on_fault(self, fields: Mapping[str, Any]) -> None:
        self.faults += 1

    def _on_queue_depth(self, fields: Mapping[str, Any]) -> None:
        self.queues[str(fields["queue"])] = int(fields["depth"])

    def _on_boards(self, fields: Mapping[str, Any]) -> None:
        self.boards = {str(state): int(count) for state, count in fields.items()}

    def _on_study_finished(self, fields: Mapping[str, Any]) -> None:
        self.finished = str(fields.get("reason", ""))


_HANDLERS: dict[str, Callable[[Progress, Mapping[str, Any]], None]] = {
    name.removeprefix("_on_"): handler for name, handler in vars(Progress).items() if name.startswith("_on_")
}


def amount_of(value: Any) -> float:
    """The number in an event's value, which is a plain number or the JSON form of a ``Value``."""
    return float(value["amount"] if isinstance(value, Mapping) else value)
