"""A lab's worker: the parent of one Celery worker process, or of one a GPU, for as long as it is left running.

The parent runs no task and loads neither Celery nor PyTorch. It starts the workers again when they die, watches their
children's memory, serves the metrics, and lets them go gracefully.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import monotonic
from types import FrameType

import redis
from prometheus_client import CollectorRegistry

from orchestrator.errors import UsageError
from orchestrator.exposition import MetricsServer
from orchestrator.extras import require
from orchestrator.quantities import rounded, show
from orchestrator.records import Ending, Event, Fault
from orchestrator.signals import set_soon
from tasks.address import exposure, without_password
from tasks.answers import fault_result, publish
from tasks.broker import check_queues, check_reachable, connect
from tasks.channel import WORKER_CHANNEL, Channel
from tasks.floor import check_memory_limit
from tasks.gpus import Gpu, chosen_gpus, installed_gpus, pinned_to
from tasks.guardian import Guardian
from tasks.hosts import host_name
from tasks.leaving import LEAVE_SIGNAL
from tasks.oversight import (
    OomCounter,
    RunningTask,
    TaskTable,
    kill_family,
    leaving_fault,
    memory_fault,
    out_of_memory_fault,
    over_limit,
    resident_bytes,
)
from tasks.transport import LONGEST_LIMIT_S, TIME_LIMIT_VARIABLE
from tasks.trust import trust_of_queues
from tasks.worker_metrics import WorkerMetrics
from tasks.workers import Supervisor, WorkerSpec, worker_broker

LOOK_EVERY_S = 0.25
FINISH_S = 60.0
# From being told to leave to being ended: a training saves its state after the epoch it is in.
HAND_OVER_S = 20.0
_SIGN_OFF_S = 5.0
_GPUS_EVERY_S = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CrewOptions:
    """How a worker is run. ``gpus``: indices or uuids with commas, ``all``, or empty for none pinned. Limits of 0 are
    none. ``is_handed_over``: on SIGTERM tasks are handed over at once, instead of after ``finish_s``. Without
    ``metrics_port`` no metrics are served; 0 takes any free one."""

    queues: tuple[str, ...]
    concurrency: int = 1
    name: str = ""
    gpus: str = ""
    memory_limit_bytes: float = 0.0
    time_limit_s: float = 0.0
    is_handed_over: bool = False
    finish_s: float = FINISH_S
    metrics_port: int | None = None
    metrics_address: str = "127.0.0.1"
    artifact_stores: tuple[str, ...] = ()


def run_crew(options: CrewOptions, announce: Callable[[str], None] = lambda line: None) -> int:
    """Serve the queues until SIGTERM or SIGINT, then finish what is under way; a second signal hands it over at once,
    a third ends it.

    Returns:
        The exit status.

    Raises:
        BrokerAddressError, BrokerError: there is no broker to serve.
        MissingExtra: the stages need what is not installed.
        UsageError: a GPU that does not exist, a limit that no task may or can have, or the metrics' port is taken.
    """
    if options.time_limit_s > LONGEST_LIMIT_S:
        raise UsageError(f"--time-limit: found {options.time_limit_s:g} s; allowed are up to {LONGEST_LIMIT_S:g}")
    url = worker_broker()
    if danger := exposure(url):
        announce(danger)
    gpus = _gpus_of(options, announce)
    if not trust_of_queues(options.queues).is_agent:
        require("search")
    check_reachable(url, is_needed=True)
    check_queues(url, options.queues)
    check_memory_limit(options.queues, options.memory_limit_bytes)
    with ExitStack() as stack:
        crew = Crew(options, url, gpus)
        stack.callback(crew.close)
        if options.metrics_port is not None:
            server = MetricsServer(crew.registry, port=options.metrics_port, address=options.metrics_address)
            stack.enter_context(server)
            announce(f"metrics at {server.url}")
        at_once = f"one on each of {len(gpus)} GPUs" if gpus else f"{options.concurrency} at once"
        announce(
            f"serving {', '.join(options.queues)} of {without_password(url)}, {at_once}; "
            "Ctrl-C or SIGTERM finishes what is under way and stops; twice: hands it over at once"
        )
        return crew.serve()


def _gpus_of(options: CrewOptions, announce: Callable[[str], None]) -> tuple[Gpu, ...]:
    if not options.gpus:
        return ()
    if options.concurrency != 1:
        raise UsageError("--gpus goes with --concurrency 1: each GPU has a process of its own")
    gpus = chosen_gpus(options.gpus, installed_gpus())
    if not gpus:
        announce("no GPU found here (nvidia-smi names none): tasks run on the processor")
    return gpus


def specs_of(options: CrewOptions, gpus: Sequence[Gpu]) -> tuple[WorkerSpec, ...]:
    """The worker processes: one, or one a GPU that sees no other."""
    name, queue = options.name or host_name(), ",".join(options.queues)
    stores = options.artifact_stores
    if not gpus:
        return (WorkerSpec(name=name, queue=queue, concurrency=options.concurrency, artifact_stores=stores),)
    return tuple(
        WorkerSpec(
            name=f"{name}-gpu{gpu.index}",
            queue=queue,
            concurrency=1,
            artifact_stores=stores,
            environment=pinned_to(gpu),
        )
        for gpu in gpus
    )


class Crew:
    """What :func:`run_crew` runs; ``registry`` holds its metrics."""

    def __init__(self, options: CrewOptions, url: str, gpus: Sequence[Gpu] = ()) -> None:
        self.options = options
        self.registry = CollectorRegistry()
        self.specs = specs_of(options, gpus)
        stages = trust_of_queues(options.queues).stages
        self._metrics = WorkerMetrics(self.registry, stages, options.memory_limit_bytes)
        self._gpus = {gpu.uuid for gpu in gpus}
        self._tasks = TaskTable()
        self._oom = OomCounter.of_this_process()
        self._children: dict[int, float] = {}
        self._ended: set[int] = set()
        self._restarts = 0
        self._failure = ""
        self._client = connect(url, retries=1)
        self._channel = Channel(self._take, "worker")
        self._guardian = Guardian()
        self._supervisor = Supervisor(None, self._environment(), self._guardian)
        self._signals = 0
        self._stop, self._over = threading.Event(), threading.Event()

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, WORKER_CHANNEL: self._channel.address}
        if self.options.time_limit_s:
            environment[TIME_LIMIT_VARIABLE] = str(self.options.time_limit_s)
        return environment

    def serve(self) -> int:
        """Look after the workers until told to stop."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        watch = threading.Thread(target=self._watch_gpus, name="gpus", daemon=True)
        try:
            self._supervisor.start(self.specs)
            watch.start()
            while not self._stop.is_set():
                self.look()
                self._stop.wait(LOOK_EVERY_S)
            self._drain()
        finally:
            self._over.set()
            for number, handler in before.items():
                signal.signal(number, handler)
        return 0

    def look(self) -> None:
        """One look at all children: who is gone, who takes too much, what is under way."""
        used = resident_bytes(self._supervisor.pids().values())
        by_stage: dict[str, float] = {}
        for task in self._tasks.all():
            by_stage[task.stage] = max(by_stage.get(task.stage, 0.0), used.get(task.pid, 0.0))
        self._metrics.set_memory(sum(used.values()), by_stage)
        for pid in self._children.keys() - used.keys():
            self._lost_child(pid)
        for pid in over_limit(used, self.options.memory_limit_bytes):
            self._end_child(pid, used[pid])
        self._children = used
        self._metrics.set_running(self._tasks.counts())
        self._say_restarts()

    def close(self) -> None:
        """End everything that still runs; harmless after :meth:`serve`."""
        self._over.set()
        self._supervisor.stop(0.0)
        self._guardian.stop()
        self._channel.close()
        self._client.close()

    def _take(self, event: Event) -> None:
        self._tasks.take(event)
        self._metrics.take(event)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        set_soon(self._stop)

    # -- children that end ---------------------------------------------------------------------------------------

    def _end_child(self, pid: int, used_bytes: float) -> None:
        """Answer for its task first: once it is gone, its message comes back, and would be told as a lost worker."""
        task = self._tasks.drop(pid)
        if task is not None:
            self._answer(task, memory_fault(task, used_bytes, self.options.memory_limit_bytes))
        else:
            _log.warning(
                "a process that waited for tasks kept %s of memory and was replaced: the worker allows %s",
                show(used_bytes, "byte"),
                rounded(self.options.memory_limit_bytes, "byte"),
            )
        self._ended.add(pid)
        kill_family(pid)
        self._metrics.count_exit("memory_limit")

    def _lost_child(self, pid: int) -> None:
        if pid in self._ended:
            self._ended.discard(pid)
            return
        has_risen, task = self._oom.has_risen(), self._tasks.drop(pid)
        if task is None:
            self._metrics.count_exit("idle")
        elif has_risen:
            self._answer(task, out_of_memory_fault(task, self._children[pid]))
            self._metrics.count_exit("out_of_memory")
        else:  # said by the next child, to which the message comes back, or by the loop, which misses its beat
            self._metrics.count_exit("lost")

    def _answer(self, task: RunningTask, fault: Fault) -> None:
        """Publish a fault in the place of a child. Where the broker is away the task is told as lost later."""
        result = fault_result(task.request, fault, self.specs[0].name)
        try:
            publish(self._client, result)
        except (redis.RedisError, OSError) as error:
            _log.warning("cannot tell of stage %s of trial %d: %s", task.stage, task.trial, error)
        fields = {"stage": task.stage, "ending": Ending.FAULT.value, "reason": fault.reason}
        self._metrics.take(Event(name="task_ended", fields=fields))
        _log.warning("stage %s of trial %d was ended: %s", task.stage, task.trial, fault.detail)

    # -- leaving -------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Take no more tasks; finish those under way, or hand them over; end whoever does neither."""
        for spec in self.specs:
            self._supervisor.hold(spec.name)
        if not self.options.is_handed_over:
            self._wait(self.options.finish_s, signals=2)
        self._hand_over()
        for task in self._tasks.all():
            self._tasks.drop(task.pid)
            self._answer(task, leaving_fault(task))
            kill_family(task.pid)
        self._wait(_SIGN_OFF_S, signals=3)  # for what is done to be acknowledged
        self._supervisor.stop(0.0)

    def _hand_over(self) -> None:
        """Tell the children that are at work to leave, and wait until none is."""
        told: set[int] = set()
        deadline = monotonic() + HAND_OVER_S
        while self._tasks.all() and monotonic() < deadline and self._signals < 3:
            for task in self._tasks.all():
                if task.pid not in told:  # also what began while the workers were told to stop
                    told.add(task.pid)
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(task.pid, LEAVE_SIGNAL)
            self._pause()

    def _wait(self, seconds: float, *, signals: int) -> None:
        """Until the workers have ended, time is over, or as many signals came."""
        deadline = monotonic() + seconds
        while self._supervisor.alive() and monotonic() < deadline and self._signals < signals:
            self._pause()

    def _pause(self) -> None:
        self.look()
        self._over.wait(0.05)

    # -- rims ----------------------------------------------------------------------------------------------------

    def _say_restarts(self) -> None:
        while self._restarts < self._supervisor.restarts:
            self._restarts += 1
            self._metrics.count_restart()
        if self._supervisor.failure and self._supervisor.failure != self._failure:
            _log.error("%s", self._supervisor.failure)
        self._failure = self._supervisor.failure

    def _watch_gpus(self) -> None:
        while self._gpus and not self._over.is_set():
            self._metrics.set_gpus(gpu for gpu in installed_gpus() if gpu.uuid in self._gpus)
            self._over.wait(_GPUS_EVERY_S)
