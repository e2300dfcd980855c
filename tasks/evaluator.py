"""Evaluators: the loop's way to have stages run, by workers over a queue or right here."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import redis

from orchestrator.boards import base
from orchestrator.errors import OrchestratorError
from orchestrator.ports import EventSink
from orchestrator.records import Event, Json, StageRequest, StageResult
from tasks import messages
from tasks.app import is_gone, soft_limit_s
from tasks.artifacts import ArtifactStore
from tasks.broker import connect, without_password
from tasks.messages import Holder, TaskMessage
from tasks.registry import BOARD_STAGES, STAGES, perform
from tasks.transport import HARD_LIMIT_MARGIN_S, LONGEST_LIMIT_S, new_entry

T = TypeVar("T")

# A restart of the broker by hand, with an upgrade between, takes a minute.
PATIENCE_S = 150.0
_NOT_TAKEN_S = 12.0
_WATCH_EVERY_S = 2.0
_IDLE_S = 0.05
_LONGEST_BLOCK_S = 1.0
_DEFAULT_PROFILE_TIMEOUT_S = 120.0


class _Silent:
    def emit(self, event: Event) -> None:
        """Nobody listens."""


class InlineEvaluator:
    """Runs each stage in this process, inside ``collect``: for tests, for looking into a stage with a debugger."""

    def __init__(
        self, artifacts: str | Path, sink: EventSink | None = None, *, stages: tuple[str, ...] = STAGES
    ) -> None:
        self.stages = stages
        self._store = ArtifactStore(artifacts)
        self._sink: EventSink = sink or _Silent()
        self._queue: deque[StageRequest] = deque()

    def submit(self, request: StageRequest) -> None:
        self._queue.append(request)

    def collect(self, timeout_s: float) -> Sequence[StageResult]:
        if not self._queue:
            time.sleep(min(timeout_s, _IDLE_S))
            return ()
        request = self._queue.popleft()
        about = {"trial": request.trial, "stage": request.stage, "attempt": request.attempt, "worker": "inline"}

        def progress(event: Event) -> None:
            self._sink.emit(Event(name=event.name, fields={**about, **event.fields}))

        progress(Event(name="stage_started"))
        return (perform(request, self._store, progress=progress, worker="inline"),)

    def lost(self, task_ids: Sequence[str]) -> Sequence[str]:
        return ()

    def close(self) -> None:
        self._queue.clear()


@dataclass(kw_only=True)
class _Waiting:
    """A task that was published and of whose start nothing has been heard."""

    request: StageRequest
    published: float


class CeleryEvaluator:
    """Has stages run by Celery workers over the Redis at ``url``.

    ``artifacts`` is where workers find and leave artifacts; ``check`` is called now and then and raises when workers
    cannot live; ``boards`` is the number of boards of all kinds where it is known, for the ``boards`` event; ``stages``
    are those of the study (:func:`tasks.registry.stages_for`). Single-threaded.

    A result that ``collect`` returned is deleted from the broker by the next ``collect``: by then the caller has
    recorded it. Whoever dies in between is given it again.

    Raises (``submit``, ``collect``, ``lost``):
        OrchestratorError: the broker was away for longer than ``patience_s`` or refuses to work (its disk or memory is
            full), or ``check`` says so.
    """

    def __init__(
        self,
        *,
        url: str,
        study_id: str,
        artifacts: str | Path,
        sink: EventSink | None = None,
        check: Callable[[], None] = lambda: None,
        boards: int = 0,
        patience_s: float = PATIENCE_S,
        stages: tuple[str, ...] = STAGES,
    ) -> None:
        self.stages = stages
        self._url = url
        self._study_id = study_id
        self._artifacts = str(artifacts)
        self._sink: EventSink = sink or _Silent()
        self._check = check
        self._boards = boards
        self._patience_s = patience_s
        # Without retries of its own: an outage must be seen here, because no beat is sent during one.
        self._client = connect(url, retries=0)
        self._was_away = -math.inf
        self._waiting: dict[str, _Waiting] = {}
        self._returned: list[bytes] = []
        self._last_result = b"0"
        self._last_event = self._patiently(self._newest_event)
        self._watched = 0.0
        self._depths: dict[str, int] = {}
        self._queues: set[str] = set()
        self._board_tasks: set[tuple[int, str, int]] = set()
        self._reported: dict[str, int] = {}

    def submit(self, request: StageRequest) -> None:
        self._patiently(lambda: self._publish(request, is_asked_for=True))

    def collect(self, timeout_s: float) -> Sequence[StageResult]:
        deadline = monotonic() + timeout_s
        self._forget_returned()
        while True:
            self._watch()
            remaining = deadline - monotonic()
            results = self._patiently(functools.partial(self._read, max(0.0, remaining)))
            if results or remaining <= 0:
                return results

    def lost(self, task_ids: Sequence[str]) -> Sequence[str]:
        """Those of the tasks that a worker took which is gone, by its process or by its beat.

        Tasks that nobody took are no loss: when their queue is empty all the same, they are published again here.
        """
        self._check()
        return self._patiently(lambda: self._lost(task_ids))

    def close(self) -> None:
        # Results that stay behind are given again to the next run, which passes over them.
        with contextlib.suppress(redis.RedisError, OSError):
            self._delete_returned()
        self._client.close()

    def _publish(self, request: StageRequest, *, is_asked_for: bool) -> None:
        self._waiting[request.task_id] = _Waiting(request=request, published=monotonic())
        queue = messages.queue_of(request.stage, str(request.study.get("board", "")))
        self._queues.add(queue)
        soft_s = soft_limit_s(request.stage, _profile_timeout_s(request))
        message = TaskMessage(request=request, artifacts=self._artifacts).to_json()
        limits = [soft_s + HARD_LIMIT_MARGIN_S, soft_s]
        _check_message(message, limits[0])
        entry = new_entry(messages.task_name(request.stage), request.task_id, message, limits, queue)
        # Straight to Redis: through Celery's producer it takes four times as long.
        beat = messages.beat_key(request.task_id)
        pipeline = self._client.pipeline(transaction=False)
        pipeline.get(beat)
        pipeline.lpush(queue, entry)
        if pipeline.execute()[0] in messages.TOMBSTONES and is_asked_for:
            # An attempt that ended or was given up under this id: its result never reached the ledger, so it may run
            # again. A worker may have dropped the first copy of its message already; of two copies one is.
            self._client.delete(beat)
            self._client.lpush(queue, entry)

    def _read(self, timeout_s: float) -> list[StageResult]:
        block_ms = max(1, int(min(timeout_s, _LONGEST_BLOCK_S) * 1000))
        results_key, events_key = messages.results_key(self._study_id), messages.events_key(self._study_id)
        streams: dict[Any, Any] = {results_key: self._last_result, events_key: self._last_event}
        replies: Any = self._client.xread(streams, count=200, block=block_ms) or []
        reply: dict[bytes, Any] = dict(replies)
        for entry_id, entry in reply.get(events_key.encode(), []):
            self._last_event = entry_id
            with contextlib.suppress(ValueError):  # progress that cannot be read is no fault
                self._pass_on(messages.decode_event(entry))
        return [self._take(entry_id, entry) for entry_id, entry in reply.get(results_key.encode(), [])]

    def _take(self, entry_id: bytes, entry: dict[bytes, bytes]) -> StageResult:
        self._last_result = entry_id
        self._returned.append(entry_id)
        try:
            result = messages.decode_result(entry)
        except (ValueError, KeyError, TypeError) as error:
            raise OrchestratorError(
                f"a worker answered in a form this program does not read ({error}); install the same version everywhere"
            ) from error
        self._waiting.pop(messages.task_id_of(result), None)
        if base(result.stage) in BOARD_STAGES:
            self._board_task((result.trial, result.stage, result.attempt), is_running=False)
        return result

    def _pass_on(self, event: Event) -> None:
        about = event.fields
        if event.name == "stage_started" and base(about["stage"]) in BOARD_STAGES:
            self._board_task((about["trial"], about["stage"], about["attempt"]), is_running=True)
        self._sink.emit(event)

    def _board_task(self, task: tuple[int, str, int], *, is_running: bool) -> None:
        (self._board_tasks.add if is_running else self._board_tasks.discard)(task)
        if self._boards:
            busy = min(len(self._board_tasks), self._boards)
            self._sink.emit(Event(name="boards", fields={"busy": busy, "free": self._boards - busy}))

    def _forget_returned(self) -> None:
        self._patiently(self._delete_returned)

    def _delete_returned(self) -> None:
        if self._returned:
            self._client.xdel(messages.results_key(self._study_id), *self._returned)
            self._returned = []

    def _newest_event(self) -> bytes:
        newest: Any = self._client.xrevrange(messages.events_key(self._study_id), count=1)
        return bytes(newest[0][0]) if newest else b"0"

    def _lost(self, task_ids: Sequence[str]) -> list[str]:
        if not task_ids:
            return []
        started: Any = self._client.hmget(messages.started_key(self._study_id), list(task_ids))
        lost = []
        for task_id, holder in zip(task_ids, started, strict=True):
            if holder is None:
                self._publish_again_if_gone(task_id)
            elif self._is_dead(task_id, Holder.from_text(holder)):
                self._give_up(task_id)
                lost.append(task_id)
        return lost

    def _is_dead(self, task_id: str, holder: Holder) -> bool:
        """By its process, or by its beat; while the broker was away there was none, and whoever lives sends the next
        within one beat's life."""
        beats = self._client.exists(messages.beat_key(task_id)) or self._is_just_back()
        still_started = self._client.hexists(messages.started_key(self._study_id), task_id)
        return bool(still_started) and (not beats or is_gone(holder))

    def _is_just_back(self) -> bool:
        """Whether the broker was away within the last beat's life, as it was seen here or as it says itself."""
        if monotonic() - self._was_away < messages.BEAT_TTL_S:
            return True
        try:
            server: Any = self._client.info("server")
        except redis.exceptions.NoPermissionError:
            return False
        return bool(server["uptime_in_seconds"] < messages.BEAT_TTL_S)

    def _give_up(self, task_id: str) -> None:
        """Nobody may run this attempt any more: should its message come back, it is dropped."""
        pipeline = self._client.pipeline(transaction=True)
        pipeline.set(messages.beat_key(task_id), messages.GIVEN_UP, ex=messages.RESULT_KEPT_S)
        pipeline.hdel(messages.started_key(self._study_id), task_id)
        pipeline.execute()
        self._waiting.pop(task_id, None)

    def _publish_again_if_gone(self, task_id: str) -> None:
        """A message can vanish with a worker that had fetched it and not begun, or with the broker's last second."""
        waiting = self._waiting.get(task_id)
        if waiting is None or monotonic() - waiting.published < _NOT_TAKEN_S:
            return
        queue = messages.queue_of(waiting.request.stage, str(waiting.request.study.get("board", "")))
        if self._client.llen(queue) == 0:
            self._publish(waiting.request, is_asked_for=False)

    def _watch(self) -> None:
        """Every few seconds: are the workers alive, and how long are the queues."""
        if monotonic() - self._watched < _WATCH_EVERY_S:
            return
        self._watched = monotonic()
        self._check()
        for queue in sorted(self._queues):
            depth: Any = self._patiently(functools.partial(self._client.llen, queue))
            if self._depths.get(queue) != depth:
                self._depths[queue] = depth
                self._sink.emit(Event(name="queue_depth", fields={"queue": queue, "depth": depth}))
        if not self._boards:
            self._watch_agents()

    def _watch_agents(self) -> None:
        """What the agents say of the boards that serve this study."""
        counts = self._patiently(self._reported_boards)
        if counts != self._reported:
            self._reported = counts
            self._sink.emit(Event(name="boards", fields=counts))

    def _reported_boards(self) -> dict[str, int]:
        kinds = {queue.partition(".")[2] for queue in self._queues if queue.startswith(f"{messages.BOARD_QUEUE}.")}
        keys = list(self._client.scan_iter(messages.AGENT_KEYS, count=1000)) if kinds else []
        texts: Any = self._client.mget(keys) if keys else []
        return messages.board_counts([text for text in texts if text], kinds)

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do it, over a broker that comes back within ``patience_s``."""
        deadline = monotonic() + self._patience_s
        while True:
            try:
                return action()
            except (redis.RedisError, OSError) as error:
                refusal = _refusal(error)
                if refusal is not None:
                    raise OrchestratorError(
                        f"the broker at {without_password(self._url)} refuses to work: {str(refusal).rstrip('.')}."
                        f"{_remedy(refusal)} Nothing is lost; the same command goes on when it works again."
                    ) from error
                self._check()
                self._was_away = monotonic()
                if monotonic() > deadline:
                    raise OrchestratorError(
                        f"the broker at {without_password(self._url)} is away for {self._patience_s:g} s now: {error}. "
                        "Nothing is lost; the same command goes on when it is back."
                    ) from error
                time.sleep(0.2)


def _check_message(message: Json, limit_s: float) -> None:
    """Say now what every worker would say by dropping the message."""
    if limit_s > LONGEST_LIMIT_S:
        raise OrchestratorError(
            f"a stage would take up to {limit_s:g} s; allowed are {LONGEST_LIMIT_S:g} (profiling.timeout)"
        )
    size = len(json.dumps(message).encode())
    if size + 200 > messages.MESSAGE_BYTES:  # Celery's list around it
        raise OrchestratorError(
            f"the message for a stage is {size} bytes; allowed are {messages.MESSAGE_BYTES}. "
            "Make the study file smaller"
        )


def _refusal(error: BaseException | None) -> redis.ResponseError | None:
    """The answer of a server that is there and refuses, also where it is wrapped in another error."""
    while error is not None and not isinstance(error, redis.ResponseError):
        error = error.__cause__
    return error


def _remedy(error: redis.ResponseError) -> str:
    if "MISCONF" in str(error) or "No space left" in str(error):
        return " Free some space on its disk."
    return " Give it more memory." if isinstance(error, redis.exceptions.OutOfMemoryError) else ""


def _profile_timeout_s(request: StageRequest) -> float:
    profiling = request.study.get("profiling")
    timeout = profiling.get("timeout") if isinstance(profiling, dict) else None
    return float(timeout) if timeout is not None else _DEFAULT_PROFILE_TIMEOUT_S
