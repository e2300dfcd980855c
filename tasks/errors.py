"""Errors of the pipeline. Each class belongs to exactly one kind, and the kind decides the retry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.records import Json, Value, Violation

if TYPE_CHECKING:
    from orchestrator.stopping import Stop  # loads SciPy, which an agent does not have


class PipelineError(Exception):
    """Base of everything a stage raises on purpose."""


class Infeasible(PipelineError):
    """The candidate's own fault: it does not fit, or its training diverged. A result, never retried.

    ``values`` are what became known before it was refused; reports show them and the proposer learns from them.
    """

    def __init__(self, *violations: Violation, values: Mapping[str, Value] | None = None) -> None:
        super().__init__("; ".join(violation.message for violation in violations))
        self.violations = violations
        self.values = dict(values or {})


class Stopped(PipelineError):
    """Given up while it trained, because it could hardly reach the front any more; ``notes`` are the stage's so far."""

    def __init__(self, stop: Stop, notes: Json) -> None:
        super().__init__(stop.message)
        self.stop = stop
        self.notes = notes


class TransientFault(PipelineError):
    """The lab's fault: a worker, a board or the network failed. Retried; ``reason`` is a short stable word."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class HandedOver(TransientFault):
    """The worker is leaving: the stage's state is kept, and another worker goes on from it. Costs no attempt."""

    def __init__(self, detail: str) -> None:
        super().__init__("handed_over", detail)


class Defect(PipelineError):
    """Our fault, or the study's: retrying cannot help, so the study stops and says why."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
