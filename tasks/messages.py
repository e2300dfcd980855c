"""What travels through Redis beside Celery's own messages: JSON, and the names of the keys it travels under.

A worker announces that it took a task (``started`` hash), shows that it lives (a ``beat`` key that expires), reports
progress (``events`` stream, bounded) and hands over its result (``results`` stream, each entry kept until the
orchestrator has recorded it). Publishing a result and ending the beat happen in one transaction.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from orchestrator.boards import base, kind_of
from orchestrator.records import Event, Json, StageRequest, StageResult, check_version

BEAT_TTL_S = 10
BEAT_EVERY_S = 2.0
RESULT_KEPT_S = 86_400
EVENTS_KEPT = 2_000
# In place of a beat: this attempt is over, a copy of its message that still turns up is dropped.
GIVEN_UP = b"given up"
DONE = b"done"
TOMBSTONES = (GIVEN_UP, DONE)

TASK_PREFIX = "edgefront."
BUILD_QUEUE = "build"
TRAIN_QUEUE = "train"
BOARD_QUEUE = "board"

QUEUE_STAGES: dict[str, tuple[str, ...]] = {
    BUILD_QUEUE: ("gate", "build", "final"),
    TRAIN_QUEUE: ("train", "compress"),
    BOARD_QUEUE: ("profile",),
}


def queue_of(stage: str, board_kind: str = "") -> str:
    """The queue a stage's tasks go to: ``build``, ``train`` or ``board.<kind>``, of the kind that the stage names where
    it names one.

    Raises:
        ValueError: there is no such stage.
    """
    for queue, stages in QUEUE_STAGES.items():
        if base(stage) in stages:
            return f"{queue}.{kind_of(stage) or board_kind}" if queue == BOARD_QUEUE else queue
    raise ValueError(f"no queue for stage {stage!r}")


def task_name(stage: str) -> str:
    """What Celery calls the stage: one task serves the stages that differ in the board alone."""
    return TASK_PREFIX + base(stage)


def results_key(study_id: str) -> str:
    return f"edgefront:{study_id}:results"


def events_key(study_id: str) -> str:
    return f"edgefront:{study_id}:events"


def started_key(study_id: str) -> str:
    return f"edgefront:{study_id}:started"


def beat_key(task_id: str) -> str:
    return f"edgefront:beat:{task_id}"


def worker_key(name: str) -> str:
    return f"edgefront:worker:{name}"


WORKER_KEYS = "edgefront:worker:*"
STARTED_KEYS = "edgefront:*:started"  # a hash without fields does not exist: no key, nothing under way


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskMessage:
    """One stage to run, and where its artifacts are kept."""

    request: StageRequest
    artifacts: str

    def to_json(self) -> Json:
        return {"version": 1, "request": self.request.to_json(), "artifacts": self.artifacts}

    @staticmethod
    def from_json(data: Json) -> TaskMessage:
        check_version(data, "task message")
        return TaskMessage(request=StageRequest.from_json(data["request"]), artifacts=data["artifacts"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who runs a task: a process of a host. ``born`` is its start (s since the epoch), so that a pid used again is told
    apart."""

    worker: str
    host: str
    pid: int
    born: float

    def to_text(self) -> str:
        return json.dumps({"worker": self.worker, "host": self.host, "pid": self.pid, "born": self.born})

    @staticmethod
    def from_text(text: str | bytes) -> Holder:
        return Holder(**json.loads(text))


def task_id_of(result: StageResult) -> str:
    """The id of the task that gave this result."""
    return StageRequest(
        study_id=result.study_id,
        trial=result.trial,
        stage=result.stage,
        attempt=result.attempt,
        params={},
        seed=0,
        inputs={},
        study={},
    ).task_id


def encode_result(result: StageResult) -> dict[str, str]:
    return {"result": json.dumps(result.to_json())}


def decode_result(entry: dict[bytes, bytes]) -> StageResult:
    """
    Raises:
        ValueError: the entry is no result of this version.
    """
    return StageResult.from_json(json.loads(entry[b"result"]))


def encode_event(event: Event) -> dict[str, str]:
    return {"name": event.name, "fields": json.dumps(event.fields)}


def decode_event(entry: dict[bytes, bytes]) -> Event:
    return Event(name=entry[b"name"].decode(), fields=json.loads(entry[b"fields"]))
