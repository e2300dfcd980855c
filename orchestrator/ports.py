"""What the loop needs from the world: an evaluator, somewhere to send events, and a clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from orchestrator.records import Event, StageRequest, StageResult


class Evaluator(Protocol):
    """Runs stages, now or later, here or elsewhere.

    Delivery is at least once: ``submit`` may be called again with the same request, and ``collect`` may return the same
    result twice; the ledger takes the first. ``lost`` names the task ids among those given whose worker is known to be
    gone, so that the loop can ask again with the next attempt. None of the calls raises for a stage that fails: a
    failure is a ``StageResult`` with a fault.

    Raises:
        OrchestratorError: the evaluator itself cannot be reached; nothing was submitted.
    """

    stages: tuple[str, ...]

    def submit(self, request: StageRequest) -> None: ...

    def collect(self, timeout_s: float) -> Sequence[StageResult]: ...

    def lost(self, task_ids: Sequence[str]) -> Sequence[str]: ...

    def close(self) -> None: ...


class EventSink(Protocol):
    """Takes events; never raises and never blocks for long."""

    def emit(self, event: Event) -> None: ...


class Control(Protocol):
    """Whoever steers a run from outside while it goes on; asked between the loop's steps, in the loop's thread."""

    def in_flight(self, could_use: int) -> int:
        """How many trials may be under way now, of the ``could_use`` that the study could have under way."""

    def is_pausing(self) -> bool:
        """Whether no further trial is to be begun; the run ends when those under way have."""

    def take_edits(self) -> bool:
        """Make the changes that were asked for of the study's file and limits; whether there were any."""


class Clock(Protocol):
    """``monotonic`` for spans, ``now_iso`` for UTC stamps."""

    def monotonic(self) -> float: ...

    def now_iso(self) -> str: ...
