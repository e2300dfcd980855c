"""The records that pass between proposing, evaluating and remembering.

Every record is frozen, checks itself once at construction and has an explicit JSON form with a version, because each of
them is stored in the study database or travels through a queue.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from orchestrator import fieldcheck

ParamValue = float | int | str | bool
Params = Mapping[str, ParamValue]
Json = dict[str, Any]

RECORD_VERSION = 1
_TASK_NAMESPACE = uuid.UUID("6f1d2f0e-6a0b-5d6c-9c37-0d8f5a4b7e21")


class Source(Enum):
    """Where a value comes from. ``EXACT`` is counted, ``MEASURED`` read from hardware, ``EMULATED`` counted on an
    emulated core, ``ESTIMATED`` computed from a stated model."""

    EXACT = "exact"
    MEASURED = "measured"
    EMULATED = "emulated"
    ESTIMATED = "estimated"


class Ending(Enum):
    """How a stage or a trial ended. Infeasible is a result. Stopped early means given up while it trained, because it
    could hardly add to the front any more: it was worth a trial and has no result. A fault is the lab's and never
    reaches the proposer."""

    COMPLETE = "complete"
    INFEASIBLE = "infeasible"
    STOPPED = "stopped"
    FAULT = "fault"


class FaultKind(Enum):
    """``TRANSIENT`` faults are retried; a ``DEFECT`` is ours, is never retried and stops the study."""

    TRANSIENT = "transient"
    DEFECT = "defect"


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """One number with its unit (base units: ``byte``, ``s``, ``J``, ``1``) and its source."""

    amount: float
    unit: str
    source: Source
    note: str = ""

    def to_json(self) -> Json:
        return {"amount": self.amount, "unit": self.unit, "source": self.source.value, "note": self.note}

    @staticmethod
    def from_json(data: Json) -> Value:
        return Value(amount=data["amount"], unit=data["unit"], source=Source(data["source"]), note=data.get("note", ""))


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """A limit that was not met: ``excess`` is how far over, in ``unit``."""

    quantity: str
    amount: float
    limit: float
    unit: str
    message: str

    def __post_init__(self) -> None:
        if math.isnan(self.amount) or math.isnan(self.limit):
            raise ValueError(
                f"violation of {self.quantity}: amount {self.amount} and limit {self.limit} must be numbers"
            )

    @property
    def excess(self) -> float:
        return self.amount - self.limit

    def to_json(self) -> Json:
        return {
            "quantity": self.quantity,
            "amount": self.amount,
            "limit": self.limit,
            "unit": self.unit,
            "message": self.message,
        }

    @staticmethod
    def from_json(data: Json) -> Violation:
        return Violation(**data)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What went wrong in the lab: ``reason`` is a short stable word (``worker_lost``, ``bit_mismatch`` …)."""

    kind: FaultKind
    reason: str
    detail: str

    def to_json(self) -> Json:
        return {"kind": self.kind.value, "reason": self.reason, "detail": self.detail}

    @staticmethod
    def from_json(data: Json) -> Fault:
        return Fault(kind=FaultKind(data["kind"]), reason=data["reason"], detail=data["detail"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A point of the search space under a trial number; ``seed`` fixes everything random in its evaluation."""

    study: str
    trial: int
    params: Params
    seed: int

    def __post_init__(self) -> None:
        if self.trial < 0:
            raise ValueError(f"trial number {self.trial} is negative")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRequest:
    """One message to a worker: run ``stage`` for this trial.

    ``inputs`` maps artifact names to the sha256 of the artifacts that earlier stages wrote; ``study`` is the study file
    as JSON (``StudyFile.to_json``); ``study_id`` is the unique id stored with the study; ``sources`` holds the
    fingerprints of what the study reads from outside (``dataset``, ``network``), empty where nobody has taken them.
    ``stopping`` is the rule by which a training may be given up (``StoppingRule.to_json``), as it stood when the stage
    was queued for the first time; it determines the result as parameters and inputs do.
    """

    study_id: str
    trial: int
    stage: str
    attempt: int
    params: Params
    seed: int
    inputs: Mapping[str, str]
    study: Json
    sources: Mapping[str, str] = field(default_factory=dict)
    stopping: Json | None = None

    @property
    def task_id(self) -> str:
        """Deterministic, so that publishing the same attempt twice asks for the same task."""
        return str(uuid.uuid5(_TASK_NAMESPACE, f"{self.study_id}/{self.trial}/{self.stage}/{self.attempt}"))

    def to_json(self) -> Json:
        return {
            "version": RECORD_VERSION,
            "study_id": self.study_id,
            "trial": self.trial,
            "stage": self.stage,
            "attempt": self.attempt,
            "params": dict(self.params),
            "seed": self.seed,
            "inputs": dict(self.inputs),
            "study": self.study,
            "sources": dict(self.sources),
            **({"stopping": self.stopping} if self.stopping is not None else {}),
        }

    @staticmethod
    def from_json(data: Json) -> StageRequest:
        """
        Raises:
            ValueError: a field is missing, unknown or not what it must be; whoever wrote the message may be anybody.
        """
        given = dict(fieldcheck.a_map("stage request", data))
        check_version(given, "stage request")
        given.pop("version")
        fieldcheck.only_known("stage request", given, frozenset(item.name for item in fields(StageRequest)))
        for name, check in _REQUEST_CHECKS.items():
            if name in given:
                given[name] = check(name, given[name])
            elif name not in ("sources", "stopping"):
                raise ValueError(f"stage request lacks the field {name}")
        return StageRequest(**given)


_REQUEST_CHECKS: Mapping[str, Callable[[str, object], Any]] = {
    "study_id": fieldcheck.an_identifier,
    "trial": lambda name, value: fieldcheck.a_whole_number(name, value, 0, 2**31),
    "stage": lambda name, value: fieldcheck.a_match(name, value, fieldcheck.STAGE, "the name of a stage"),
    "attempt": lambda name, value: fieldcheck.a_whole_number(name, value, 1, 2**31),
    "params": lambda name, value: fieldcheck.a_map_of(name, value, fieldcheck.a_param),
    "seed": lambda name, value: fieldcheck.a_whole_number(name, value, 0, 2**64),
    "inputs": lambda name, value: fieldcheck.a_map_of(name, value, fieldcheck.a_sha256),
    "study": fieldcheck.a_map,
    "sources": lambda name, value: fieldcheck.a_map_of(name, value, fieldcheck.a_text),
    "stopping": lambda name, value: None if value is None else fieldcheck.a_map(name, value),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResult:
    """What a stage answers. ``values`` and ``artifacts`` are empty on a fault; ``violations`` say why it is infeasible;
    ``notes`` hold small JSON for people and reports (per-epoch curve, memory map …), never read by the proposer."""

    study_id: str
    trial: int
    stage: str
    attempt: int
    ending: Ending
    seconds: float
    values: Mapping[str, Value] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    fault: Fault | None = None
    notes: Json = field(default_factory=dict)
    worker: str = ""

    def __post_init__(self) -> None:
        if (self.ending is Ending.FAULT) != (self.fault is not None):
            raise ValueError(f"stage {self.stage}: a fault ending needs a fault, any other must have none")
        if self.ending is Ending.INFEASIBLE and not self.violations:
            raise ValueError(f"stage {self.stage}: an infeasible ending needs at least one violation")

    def to_json(self) -> Json:
        return {
            "version": RECORD_VERSION,
            "study_id": self.study_id,
            "trial": self.trial,
            "stage": self.stage,
            "attempt": self.attempt,
            "ending": self.ending.value,
            "seconds": self.seconds,
            "values": {name: value.to_json() for name, value in self.values.items()},
            "artifacts": dict(self.artifacts),
            "violations": [violation.to_json() for violation in self.violations],
            "fault": self.fault.to_json() if self.fault else None,
            "notes": self.notes,
            "worker": self.worker,
        }

    @staticmethod
    def from_json(data: Json) -> StageResult:
        check_version(data, "stage result")
        return StageResult(
            study_id=data["study_id"],
            trial=data["trial"],
            stage=data["stage"],
            attempt=data["attempt"],
            ending=Ending(data["ending"]),
            seconds=data["seconds"],
            values={name: Value.from_json(value) for name, value in data["values"].items()},
            artifacts=data["artifacts"],
            violations=tuple(Violation.from_json(item) for item in data["violations"]),
            fault=Fault.from_json(data["fault"]) if data["fault"] else None,
            notes=data["notes"],
            worker=data["worker"],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Everything known about a trial when it has ended, merged over its stages; ``reason`` says in words why it was
    stopped early."""

    ending: Ending
    values: Mapping[str, Value] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    fault: Fault | None = None
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One thing that happened: a stable ``name`` (``trial_proposed``, ``stage_started`` …) and fields."""

    name: str
    fields: Json = field(default_factory=dict)


def check_version(data: Json, what: str) -> None:
    """Refuse a record written by another version of the format.

    Raises:
        ValueError: the version is not the one this program writes.
    """
    version = data.get("version")
    if version != RECORD_VERSION:
        raise ValueError(f"{what} has version {version!r}; this program reads version {RECORD_VERSION}")
