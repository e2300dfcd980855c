"""What travels through Redis beside Celery's own messages: JSON, and the names of the keys it travels under.

A worker announces that it took a task (``started`` hash), shows that it lives (a ``beat`` key that expires), reports
progress (``events`` stream, bounded) and hands over its result (``results`` stream, each entry kept until the
orchestrator has recorded it). Publishing a result and ending the beat happen in one transaction.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from orchestrator import fieldcheck
from orchestrator.boards import base, kind_of
from orchestrator.records import Event, Json, StageRequest, StageResult, check_version
from tasks import strictjson

BEAT_TTL_S = 10
BEAT_EVERY_S = 2.0
RESULT_KEPT_S = 86_400
EVENTS_KEPT = 2_000
# In place of a beat: this attempt is over, a copy of its message that still turns up is dropped.
GIVEN_UP = b"given up"
DONE = b"done"
TOMBSTONES = (GIVEN_UP, DONE)

TASK_PREFIX = "edgefront."
# What a message for a stage that this program does not know becomes, so that it is answered.
REFUSED_TASK = TASK_PREFIX + "refused"
# One message. A study file is a few kilobytes; whatever is large travels as an artifact.
MESSAGE_BYTES = 1_000_000
BUILD_QUEUE = "build"
TRAIN_QUEUE = "train"
BOARD_QUEUE = "board"

QUEUE_STAGES: dict[str, tuple[str, ...]] = {
    BUILD_QUEUE: ("gate", "build", "final"),
    TRAIN_QUEUE: ("train", "compress"),
    BOARD_QUEUE: ("profile",),
}
KNOWN_STAGES = tuple(stage for stages in QUEUE_STAGES.values() for stage in stages)


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


_PROCESSES = "processes="


def announcement(queues: Sequence[str], processes: int) -> str:
    """What a worker says of itself: its queues, and how many tasks it runs at once."""
    return ",".join([*sorted(queues), f"{_PROCESSES}{processes}"])


def announced(text: str) -> tuple[tuple[str, ...], int]:
    """The queues and the number of :func:`announcement`; one where it says none."""
    parts = text.split(",")
    numbers = [part.removeprefix(_PROCESSES) for part in parts if part.startswith(_PROCESSES)]
    processes = int(numbers[0]) if numbers and numbers[0].isdecimal() else 1
    return tuple(part for part in parts if not part.startswith(_PROCESSES)), processes


def agent_key(name: str) -> str:
    return f"edgefront:agent:{name}"


def board_counts(reports: Sequence[bytes], kinds: Collection[str]) -> dict[str, int]:
    """How many boards of ``kinds`` the agents report to be free, busy, stuck and quarantined; a report of another
    version is passed over."""
    counts: Counter[str] = Counter()
    for text in reports:
        report = json.loads(text)
        if report.get("version") == 1:
            states = (board["state"] for board in report["boards"] if board["kind"] in kinds)
            counts.update(_STATE_FOR_STUDIES.get(state, state) for state in states)
    return dict(counts)


_STATE_FOR_STUDIES = {"idle": "free", "leased": "busy"}
AGENT_KEYS = "edgefront:agent:*"
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
        """
        Raises:
            ValueError: a field is missing, unknown or not what it must be, or no stage is called so; nothing else,
                whatever ``data`` is.
        """
        given = fieldcheck.a_map("task message", data)
        check_version(given, "task message")
        fieldcheck.only_known("task message", given, frozenset({"version", "request", "artifacts"}))
        request = StageRequest.from_json(given.get("request"))  # type: ignore[arg-type]  # it checks
        if base(request.stage) not in KNOWN_STAGES:
            found = fieldcheck.shown(request.stage)
            raise ValueError(f"stage is {found}; there are {', '.join(KNOWN_STAGES)}")
        return TaskMessage(request=request, artifacts=fieldcheck.a_text("artifacts", given.get("artifacts")))


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
        """
        Raises:
            ValueError: the text is not one of ``to_text``.
        """
        data = fieldcheck.a_map("holder", strictjson.loads(text, fieldcheck.LONGEST_TEXT))
        born = data.get("born")
        if not isinstance(born, int | float) or isinstance(born, bool):
            raise ValueError(f"holder has the start {fieldcheck.shown(born)}; expected a number of seconds")
        return Holder(
            worker=fieldcheck.a_text("worker", data.get("worker")),
            host=fieldcheck.a_text("host", data.get("host")),
            pid=fieldcheck.a_whole_number("pid", data.get("pid"), 1, 2**31),
            born=float(born),
        )


def task_id_of(result: StageResult) -> str:
    """The id of the task that gave this result."""
    return bare_request(result.study_id, result.trial, result.stage, result.attempt).task_id


def bare_request(study_id: str, trial: int, stage: str, attempt: int) -> StageRequest:
    """As much of a request as its id and an answer to it need."""
    return StageRequest(
        study_id=study_id,
        trial=trial,
        stage=stage,
        attempt=attempt,
        params={},
        seed=0,
        inputs={},
        study={},
    )


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
    """
    Raises:
        ValueError: the entry is no event.
    """
    name, fields = entry.get(b"name", b""), entry.get(b"fields", b"")
    return Event(
        name=fieldcheck.an_identifier("name of an event", name.decode(errors="replace")),
        fields=fieldcheck.a_map("fields of an event", strictjson.loads(fields, MESSAGE_BYTES)),
    )
