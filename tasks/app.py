"""The Celery application: six tasks with explicit names, JSON only, delivered at least once.

A task's body decodes its message, runs the stage through :func:`tasks.registry.perform` and publishes the result. The
worker's parent process loads neither PyTorch nor anything else heavy: its children do, once each, and then serve many
tasks.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

import psutil
import redis
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from billiard.process import current_process
from celery import Celery, Task, bootsteps, signals
from celery.worker import state

from orchestrator import fieldcheck
from orchestrator.records import Ending, Event, Fault, FaultKind, Json, StageRequest, StageResult
from tasks import leaving, messages, transport
from tasks.address import split_tls
from tasks.answers import fault_result, publish, transient
from tasks.artifacts import ArtifactStore
from tasks.broker import BROKER_VARIABLE, connect
from tasks.channel import tell_worker
from tasks.checkpoints import StoredCheckpoint
from tasks.errors import PipelineError, TransientFault
from tasks.hosts import host_name
from tasks.messages import Holder, TaskMessage
from tasks.registry import FINAL_STAGE, STAGES, perform, stage_function
from tasks.stage import StageContext, StageFunction, StageOutput
from tasks.trust import Trust

WORKER_VARIABLE = "EDGEFRONT_WORKER"
WARM_VARIABLE = "EDGEFRONT_WARM_STAGES"
# Above the longest hard limit of a task, or Redis hands out a task a second time while the first still runs.
VISIBILITY_TIMEOUT_S = int(transport.LONGEST_LIMIT_S) + 1800
# How long a result waits for a broker that is away; the client itself gives up after about 20 s each time.
PUBLISH_PATIENCE_S = 900.0
_SOFT_LIMITS_S = {"gate": 300.0, "train": 4 * 3600.0, "compress": 4 * 3600.0, "build": 1800.0, "final": 3600.0}

_log = logging.getLogger(__name__)


def soft_limit_s(stage: str, profile_timeout_s: float) -> float:
    """How long a stage may take before it is interrupted. A profile's attempts have deadlines of their own; this one
    lies behind all that a troubled rack may take: waiting, three attempts, self-tests, power cycles between them."""
    return _SOFT_LIMITS_S.get(stage, 5.0 * profile_timeout_s + 180.0)


def _without_traceback(record: logging.LogRecord) -> bool:
    """A child that was ended is one line of the log: where in Celery it was noticed tells nobody anything."""
    if record.exc_info and issubclass(record.exc_info[0] or object, WorkerLostError | TimeLimitExceeded):
        record.exc_info = None
    return True


# Celery's, which logs a task that failed in the parent process.
logging.getLogger("celery.worker.request").addFilter(_without_traceback)


class _Upkeep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
    """What the worker's parent does from time to time: say that it is there and which queues it serves, replace dead
    children (every second instead of every fifth), and reconnect when it is stuck.

    Stuck: the broker went away just as a message was to be acknowledged. The message stays on the list of those under
    way, which is then full for ever, so that nothing is fetched and the dead connection never noticed.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        names = [queue.name for queue in parent.task_consumer.queues]
        queues = messages.announcement(names, parent.pool.num_processes)
        announce = functools.partial(_announce, connect(worker_url(), retries=0), str(parent.hostname), queues)
        announce()
        if hasattr(self, "_timers"):  # started again, after the last line of the log was that it is not connected
            _log.warning("connected to the broker again, serving %s", ", ".join(names))
        self._timers = [
            parent.timer.call_repeatedly(5.0, announce),
            parent.timer.call_repeatedly(1.0, parent.pool.maintain_pool),
            parent.timer.call_repeatedly(2.0, functools.partial(self._reconnect_if_stuck, parent)),
        ]
        self._seemed_stuck = False

    def _reconnect_if_stuck(self, parent: Any) -> None:
        is_idle = not state.reserved_requests and not state.active_requests
        is_stuck = is_idle and not parent.task_consumer.channel.qos.can_consume()
        if is_stuck and self._seemed_stuck:
            self._seemed_stuck = False
            raise redis.ConnectionError("a message could not be acknowledged")  # the event loop reconnects on these
        self._seemed_stuck = is_stuck

    def stop(self, parent: Any) -> None:
        for timer in getattr(self, "_timers", ()):
            timer.cancel()


def _announce(client: redis.Redis, name: str, queues: str) -> None:
    try:
        client.set(messages.worker_key(name), queues, ex=20)
    except (redis.RedisError, OSError) as error:
        _log.warning("cannot announce this worker: %s", error)


class StageTask(Task):  # type: ignore[misc]  # Celery ships no types
    """A task whose hard time limit is answered with a result, too: its process is gone and cannot do it."""

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        if isinstance(exc, TimeLimitExceeded):
            try:
                request = TaskMessage.from_json(args[0]).request
            except (ValueError, IndexError, TypeError):  # nobody to answer
                return
            fault = transient("time_limit", f"stage {request.stage} was killed after {exc.args[0]} s")
            publish(connect(worker_url()), fault_result(request, fault, worker_name()))


def make_app(broker_url: str | None) -> Celery:
    """The application on ``broker_url``. The settings and why they are so: docs/pipeline.md."""
    transport.install()
    bare_url, tls = split_tls(broker_url) if broker_url else (None, None)
    app = Celery("edgefront", broker=bare_url, task_cls=StageTask, set_as_current=False)
    app.conf.update(
        broker_use_ssl=tls,
        task_serializer=transport.SERIALIZER,
        result_serializer=transport.SERIALIZER,
        accept_content=[transport.SERIALIZER],
        task_ignore_result=True,
        result_expires=messages.RESULT_KEPT_S,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_default_queue=messages.BUILD_QUEUE,
        task_create_missing_queues=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=60.0,
        worker_max_tasks_per_child=200,
        worker_lost_wait=1.0,  # until then the dead child's message keeps the worker from fetching the next
        worker_proc_alive_timeout=180.0,  # a child loads PyTorch before it reports itself alive
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 10,
        },
        result_backend_transport_options={"visibility_timeout": VISIBILITY_TIMEOUT_S},
        visibility_timeout=VISIBILITY_TIMEOUT_S,
    )
    app.steps["consumer"].add(_Upkeep)
    for stage in (*STAGES, FINAL_STAGE):
        app.task(execute, name=messages.TASK_PREFIX + stage)
    app.task(execute, name=messages.REFUSED_TASK)
    return app


def keep_apart(chosen: Celery, group: str) -> None:
    """Have the workers of ``group`` keep their messages under way in a list of their own.

    Celery's workers share one, in which each puts back what others have left lying. Agents need no access to what the
    other workers are at, and the broker's access list can then refuse it (docs/security.md).
    """
    names = {f"unacked{what}_key": f"unacked.{group}{what}" for what in ("", "_index", "_mutex")}
    chosen.conf.broker_transport_options = {**chosen.conf.broker_transport_options, **names}


def execute(message: Json) -> None:
    """Run one stage and publish its result, once: a task that lives elsewhere is left alone, one whose process died is
    answered as a fault, so that the retry is counted and waits its turn."""
    client = process_client()
    try:
        task = TaskMessage.from_json(message)
    except ValueError as error:
        _answer_bad_message(client, message, error)
        return
    request = task.request
    if objection := Trust.from_environment().objection(task):
        fault = Fault(kind=FaultKind.DEFECT, reason="not_allowed", detail=f"{worker_name()}: {objection}")
        publish(client, fault_result(request, fault, worker_name()))
        return
    holder = this_process()
    claim = _claim(client, request.task_id, holder)
    if claim == "elsewhere":
        return
    if claim == "died":
        detail = f"the worker process died while it ran stage {request.stage}"
        publish(client, fault_result(request, transient("worker_lost", detail), holder.worker))
        return
    client.hset(messages.started_key(request.study_id), request.task_id, holder.to_text())
    progress = functools.partial(_report, client, request, holder.worker)
    progress(Event(name="stage_started"))
    tell_worker(Event(name="task_started", fields={"pid": holder.pid, **_about(request)}))
    with _beating(request.task_id, holder) as given_up:
        result = _perform(task, progress, holder.worker, given_up)
    _hand_over(result)
    reason = result.fault.reason if result.fault else ""
    fields = {"pid": holder.pid, "stage": request.stage, "seconds": result.seconds, "reason": reason}
    tell_worker(Event(name="task_ended", fields={**fields, "ending": result.ending.value}))


def _answer_bad_message(client: redis.Redis, message: object, error: ValueError) -> None:
    """Answer what can be answered; the rest is dropped with a line in the log."""
    refusal = _refusal(message, error)
    if refusal is None:
        _log.error("dropped a message that names no trial of a study: %s", error)
    else:
        publish(client, refusal)


def _refusal(message: object, error: ValueError) -> StageResult | None:
    """The answer to a message of another version of this program, or of somebody else, as far as it says whose it is.

    None where it does not; ``message`` may be anything.
    """
    request = message.get("request") if isinstance(message, dict) else None
    if not isinstance(request, dict):
        return None
    try:
        study_id = fieldcheck.an_identifier("study_id", request.get("study_id"))
        trial = fieldcheck.a_whole_number("trial", request.get("trial"), 0, 2**31)
        stage = fieldcheck.a_text("stage", request.get("stage"), 100)
        attempt = fieldcheck.a_whole_number("attempt", request.get("attempt"), 1, 2**31)
    except ValueError:
        return None
    detail = f"this worker cannot read the message ({error}); install the same version everywhere"
    return StageResult(
        study_id=study_id,
        trial=trial,
        stage=stage,
        attempt=attempt,
        ending=Ending.FAULT,
        seconds=0.0,
        fault=Fault(kind=FaultKind.DEFECT, reason="bad_message", detail=detail),
        worker=worker_name(),
    )


def _perform(task: TaskMessage, progress: Any, worker: str, given_up: threading.Event) -> StageResult:
    """``given_up`` is set once the attempt is another worker's: this one was taken for dead, and may stop."""

    def checkpoint_of(store: ArtifactStore, key: str) -> StoredCheckpoint:
        def is_leaving() -> bool:
            return leaving.is_leaving() or given_up.is_set()

        return StoredCheckpoint(store=store, key=key, leaving=is_leaving, tell=tell_worker)

    try:
        store = ArtifactStore(task.artifacts, most_bytes=Trust.from_environment().artifact_bytes)
    except (ValueError, OSError, ImportError) as error:
        fault = transient("artifact_store", f"artifact store {task.artifacts!r} cannot be used: {error}")
        return fault_result(task.request, fault, worker)
    return perform(
        task.request, store, progress=progress, worker=worker, guard=_interruptible, checkpoint=checkpoint_of
    )


def _about(request: StageRequest) -> Json:
    """What names a task, for this worker's parent."""
    return {
        "study_id": request.study_id,
        "trial": request.trial,
        "stage": request.stage,
        "attempt": request.attempt,
    }


def _hand_over(result: StageResult) -> None:
    """Publish the result, over a broker that may be away for longer than a client waits. The work is done; who looks
    for beats gives us a moment once the broker is back."""
    deadline = monotonic() + PUBLISH_PATIENCE_S
    while True:
        try:
            publish(process_client(), result)
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            if monotonic() > deadline:
                raise
            _log.warning("the result of %s waits for the broker: %s", messages.task_id_of(result), error)
        else:
            return


def _interruptible(function: StageFunction) -> StageFunction:
    """The stage with its soft time limit told as a transient fault."""

    def run(request: StageRequest, context: StageContext) -> StageOutput:
        try:
            return function(request, context)
        except SoftTimeLimitExceeded as error:
            raise TransientFault("time_limit", f"stage {request.stage} took longer than it may") from error

    return run


def _claim(client: redis.Redis, task_id: str, holder: Holder) -> str:
    """Take the task: ``taken``; ``elsewhere`` when another process has it or it was given up; ``died`` when the process
    that had it is gone."""
    key = messages.beat_key(task_id)
    if client.set(key, holder.to_text(), nx=True, ex=messages.BEAT_TTL_S):
        return "taken"
    text = client.get(key)
    if text is None or text in messages.TOMBSTONES:
        return "elsewhere"
    try:
        return "died" if is_gone(Holder.from_text(text)) else "elsewhere"
    except ValueError as error:  # somebody wrote there who is none of us; the beat ends by itself
        _log.error("task %s is held by something that is no worker: %s", task_id, error)
        return "elsewhere"


def is_gone(holder: Holder) -> bool:
    """Whether the process is known to be dead: it was of this host and is there no more."""
    if holder.host != host_name():
        return False
    try:
        process = psutil.Process(holder.pid)
        return bool(abs(process.create_time() - holder.born) > 1.0 or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@contextmanager
def _beating(task_id: str, holder: Holder) -> Iterator[threading.Event]:
    """Keep the task's beat alive from a thread, over a connection of its own. The event it yields is set, and the beat
    ends, when somebody has given the attempt up: this process stood still for longer than a beat lasts."""
    over, given_up = threading.Event(), threading.Event()
    client = connect(worker_url(), retries=0)
    key = messages.beat_key(task_id)

    def beat() -> None:
        while not over.wait(messages.BEAT_EVERY_S):
            try:
                if client.get(key) in messages.TOMBSTONES:
                    _log.warning("task %s was given up while this process stood still", task_id)
                    given_up.set()
                    return
                client.set(key, holder.to_text(), ex=messages.BEAT_TTL_S)
            except (redis.RedisError, OSError) as error:
                _log.warning("missed a beat of %s: %s", task_id, error)

    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield given_up
    finally:
        over.set()
        thread.join()
        client.close()


def _report(client: redis.Redis, request: StageRequest, worker: str, event: Event) -> None:
    """Send progress on its way; progress that cannot be sent is no fault."""
    about = {"trial": request.trial, "stage": request.stage, "attempt": request.attempt, "worker": worker}
    entry = messages.encode_event(replace(event, fields={**about, **event.fields}))
    try:
        client.xadd(messages.events_key(request.study_id), entry, maxlen=messages.EVENTS_KEPT)  # type: ignore[arg-type]
        client.expire(messages.events_key(request.study_id), messages.RESULT_KEPT_S)
    except (redis.RedisError, OSError) as error:
        _log.warning("progress of %s lost: %s", request.task_id, error)


def worker_url() -> str:
    """The broker of this worker process: ``EDGEFRONT_BROKER_URL``, set by whoever started it."""
    return os.environ.get(BROKER_VARIABLE, "redis://127.0.0.1:6379/0")


def worker_name() -> str:
    """This process by a name for people: what the supervisor called the worker, and the child's number."""
    base = os.environ.get(WORKER_VARIABLE) or host_name()
    index = getattr(current_process(), "index", None)
    return base if index is None else f"{base}-{index + 1}"


def this_process() -> Holder:
    return Holder(worker=worker_name(), host=host_name(), pid=os.getpid(), born=psutil.Process().create_time())


@functools.cache
def _client_of(pid: int, url: str) -> redis.Redis:
    return connect(url, retries=20)


def process_client() -> redis.Redis:
    """One connection a process: a forked child must not share its parent's."""
    return _client_of(os.getpid(), worker_url())


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]  # Celery ships no types
def _warm(**_: Any) -> None:
    """Load what the child's stages need before the first task waits for it."""
    leaving.listen()
    for stage in filter(None, os.environ.get(WARM_VARIABLE, "").split(",")):
        try:
            stage_function(stage)
        except PipelineError as error:  # said again, as a fault of the stage, by the first task that needs it
            _log.error("cannot load stage %s: %s", stage, error)


app = make_app(worker_url())
