"""Worker processes: one in the foreground for a lab, or a whole set beside a run, started, watched and stopped.

``python -m tasks.workers --queues build --concurrency 2`` is what the set is made of; ``run_worker`` is the same from
Python. Workers find their broker in ``EDGEFRONT_BROKER_URL``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import psutil
import redis

from orchestrator.errors import OrchestratorError
from orchestrator.extras import require
from tasks import messages
from tasks.address import exposure
from tasks.broker import (
    BROKER_VARIABLE,
    BrokerAddressError,
    EmbeddedBroker,
    check_queues,
    check_reachable,
    connect,
    tail,
    without_password,
)
from tasks.errors import PipelineError
from tasks.guardian import Guardian, kill_group
from tasks.hosts import host_name
from tasks.registry import stage_function
from tasks.trust import TRUST_VARIABLE, trust_of_queues

_log = logging.getLogger(__name__)
STOP_GRACE_S = 3.0
_CHECK_EVERY_S = 0.5
_LONGEST_BACKOFF_S = 30.0
_QUICK_DEATHS = 5
_QUICK_S = 20.0


class WorkersError(OrchestratorError):
    """Workers keep dying right after their start; the text ends with their log."""


def worker_broker(who: str = "a worker") -> str:
    """The address of the broker that this process is to serve; ``who`` it is, for people.

    Raises:
        BrokerAddressError: ``EDGEFRONT_BROKER_URL`` is not set.
    """
    url = os.environ.get(BROKER_VARIABLE)
    if not url:
        raise BrokerAddressError(
            f"{BROKER_VARIABLE} is not set; {who} needs the address of the Redis that the orchestrator uses too: "
            f"{BROKER_VARIABLE}=redis://host:6379/0"
        )
    return url


def run_worker(
    queues: Sequence[str],
    concurrency: int,
    *,
    name: str = "",
    log_level: str = "WARNING",
    announce: Callable[[str], None] = lambda line: None,
    artifact_stores: Sequence[str] = (),
) -> int:
    """Serve ``queues`` with ``concurrency`` processes until told to stop; returns the exit status.

    ``announce`` is told once what is served, when the broker has answered, and before that what is dangerous about the
    broker's address. SIGTERM finishes the tasks under way; a
    second signal, or SIGQUIT, hands them back after at most a minute. Whatever messages say, only the stages of
    ``queues`` are run, only on boards of the kinds among them, and only with artifacts at or below ``artifact_stores``
    (empty: anywhere).

    Raises:
        BrokerAddressError: ``EDGEFRONT_BROKER_URL`` is not set.
        MissingExtra: the stages need what is not installed.
        BrokerError: no Redis answers there.
    """
    worker_broker()
    trust = trust_of_queues(queues, artifact_stores)
    if not trust.is_agent:
        require("search")
    from tasks.app import WARM_VARIABLE, WORKER_VARIABLE, app, keep_apart, worker_url  # Celery only where it is run

    if danger := exposure(worker_url()):
        announce(danger)
    check_reachable(worker_url(), is_needed=True)
    check_queues(worker_url(), queues)
    announce(
        f"serving {', '.join(queues)} of {without_password(worker_url())}, {concurrency} at once; "
        "Ctrl-C finishes what is under way and stops"
    )
    # Celery warns root of pickled messages; ours are JSON and nothing else is accepted.
    warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")
    if name:
        os.environ[WORKER_VARIABLE] = name
    os.environ[WARM_VARIABLE] = ",".join(trust.stages)
    os.environ[TRUST_VARIABLE] = trust.to_text()
    if trust.is_agent:
        keep_apart(app, messages.BOARD_QUEUE)
    if trust.is_agent and sys.platform == "linux":
        _preload(trust.stages)
    # Forking is safe on macOS because this process never loads what objects to it; its children do.
    os.environ.setdefault("OBJC_DISABLE_INITIALIZE_FORK_SAFETY", "YES")
    worker = app.Worker(
        queues=list(queues),
        concurrency=concurrency,
        hostname=f"{name or 'worker'}-{os.getpid()}@{host_name()}",
        loglevel=log_level,
        pool="prefork",
        optimization="fair",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _preload(stages: Iterable[str]) -> None:
    """Load what the children will need before they are forked: an agent's stages load no PyTorch, and a rack of many
    boards starts in the time of one, with most of its memory shared."""
    for stage in stages:
        try:
            stage_function(stage)
        except PipelineError as error:  # told by the first task that needs it
            _log.error("cannot load stage %s: %s", stage, error)


@dataclass(kw_only=True)
class WorkerSpec:
    """One worker to keep running: its name in logs and events, its queue (or several, with commas), how many tasks at
    once, the ``artifact_stores`` of :func:`run_worker`, and what its environment has beside everybody's."""

    name: str
    queue: str
    concurrency: int
    artifact_stores: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class _Running:
    spec: WorkerSpec
    process: subprocess.Popen[bytes]
    started: float
    quick_deaths: int = 0
    start_again_at: float | None = None
    is_held: bool = False


@dataclass
class Supervisor:
    """Keeps a set of processes running from a thread: dead ones are started again, each time after a longer pause.

    ``failure`` is set when a worker died several times right after its start, or the broker does not come back. Without
    ``log_folder`` workers write where this process does.
    """

    log_folder: Path | None
    environment: dict[str, str]
    guardian: Guardian
    broker: EmbeddedBroker | None = None
    failure: str = ""
    restarts: int = 0
    _running: list[_Running] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # no process starts while one is being held
    _thread: threading.Thread | None = None

    def start(self, specs: Sequence[WorkerSpec]) -> None:
        if self.log_folder is not None:
            self.log_folder.mkdir(parents=True, exist_ok=True)
        for spec in specs:
            self._running.append(_Running(spec=spec, process=self._launch(spec), started=monotonic()))
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    def pids(self) -> dict[str, int]:
        """The workers' parent processes by name."""
        return {running.spec.name: running.process.pid for running in self._running}

    def alive(self) -> list[str]:
        """The workers whose parent process runs."""
        return [running.spec.name for running in self._running if running.process.poll() is None]

    def hold(self, name: str) -> None:
        """Let a worker finish its tasks and end, and do not start it again before :meth:`let_go`."""
        with self._lock:
            for running in self._running:
                if running.spec.name == name and not running.is_held:
                    running.is_held = True
                    running.process.terminate()

    def let_go(self, name: str) -> None:
        """Have a held worker running again."""
        with self._lock:
            for running in self._running:
                if running.spec.name == name and running.is_held:
                    running.is_held, running.quick_deaths = False, 0

    def stop(self, grace_s: float) -> None:
        """Ask all workers to end, and kill the process groups of those that have not after ``grace_s``."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        for running in self._running:
            if running.process.poll() is None:
                running.process.terminate()
        deadline = monotonic() + grace_s
        for running in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(max(0.0, deadline - monotonic()))
            kill_group(running.process.pid, signal.SIGKILL)
            running.process.wait()
            self.guardian.remove(running.process.pid)

    def log_of(self, spec: WorkerSpec) -> Path | None:
        return self.log_folder / f"worker-{spec.name}.log" if self.log_folder is not None else None

    def _launch(self, spec: WorkerSpec) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tasks.workers", "--queues", spec.queue]
        command += ["--concurrency", str(spec.concurrency), "--name", spec.name]
        command += [f"--artifact-store={store}" for store in spec.artifact_stores]
        path = self.log_of(spec)
        with path.open("ab") if path is not None else contextlib.nullcontext() as log:
            process = subprocess.Popen(
                command,
                env={**self.environment, **spec.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.guardian.add(process.pid)
        return process

    def _watch(self) -> None:
        while not self._over.wait(_CHECK_EVERY_S):
            self._look_after_broker()
            for running in self._running:
                with self._lock:
                    self._look_after(running)

    def _look_after_broker(self) -> None:
        if self.broker is None or self.broker.process is None or self.broker.process.poll() is None:
            return
        try:
            self.broker.restart()
        except OrchestratorError as error:
            self.failure = str(error)
        else:
            self.guardian.add(self.broker.process.pid)
            self.restarts += 1

    def _look_after(self, running: _Running) -> None:
        if running.process.poll() is None:
            return
        if running.is_held:
            self.guardian.remove(running.process.pid)
            return
        now = monotonic()
        if running.start_again_at is None:
            # Children of a worker that was killed finish their task at most; nobody would collect what they do next.
            kill_group(running.process.pid, signal.SIGKILL)
            self.guardian.remove(running.process.pid)
            running.quick_deaths = running.quick_deaths + 1 if now - running.started < _QUICK_S else 0
            running.start_again_at = now + min(_LONGEST_BACKOFF_S, 0.5 * 2**running.quick_deaths - 0.5)
        if running.quick_deaths >= _QUICK_DEATHS:
            log = self.log_of(running.spec)
            last = f"; {log} ends with:\n{tail(log)}" if log is not None else ""
            self.failure = f"worker {running.spec.name} keeps dying at its start{last}"
        if now >= running.start_again_at:
            running.process, running.started = self._launch(running.spec), now
            running.start_again_at = None
            self.restarts += 1


class EmbeddedLab:
    """Everything a run needs beside itself: a broker (unless ``EDGEFRONT_BROKER_URL`` names one) and worker processes.

    With a broker given, no workers are started: they are the lab's. As a context manager it yields itself; ``url`` is
    the broker's address, ``check()`` raises when the workers cannot live. Each of ``board_kinds`` has a worker with
    ``boards`` processes; the attribute ``boards`` is their number over all kinds. Leaving it ends every process, and
    should the run be killed, a guardian process ends them. A set that survived even that is ended by the next start.

    Raises:
        BrokerError: no broker can be started, or the given one does not answer.
        WorkersError (``check``): a worker dies at every start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        board_kinds: Sequence[str],
        train_workers: int = 1,
        build_workers: int = 1,
        boards: int = 1,
    ) -> None:
        self._folder = folder
        self._specs = (
            WorkerSpec(name="build", queue=messages.BUILD_QUEUE, concurrency=build_workers),
            WorkerSpec(name="train", queue=messages.TRAIN_QUEUE, concurrency=train_workers),
            *(
                WorkerSpec(
                    name="board" if len(board_kinds) == 1 else f"board-{kind}",
                    queue=f"{messages.BOARD_QUEUE}.{kind}",
                    concurrency=boards,
                )
                for kind in board_kinds
            ),
        )
        self._guardian: Guardian | None = None
        self._broker: EmbeddedBroker | None = None
        self._supervisor: Supervisor | None = None
        self.boards = boards * len(board_kinds)
        self.is_embedded = True
        self.url = ""

    def __enter__(self) -> EmbeddedLab:
        given = os.environ.get(BROKER_VARIABLE)
        if given:
            check_reachable(given)
            self.url, self.is_embedded = given, False
            return self
        self._end_leftovers()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self) -> None:
        if self._supervisor is not None and self._supervisor.failure:
            raise WorkersError(self._supervisor.failure)

    def unserved_queues(self) -> tuple[str, ...]:
        """The queues of the study that no worker has announced to serve, a second or two after its start at the latest.

        Raises:
            redis.RedisError: the broker does not answer.
        """
        client = connect(self.url)
        try:
            announced: Any = [client.get(key) for key in client.scan_iter(messages.WORKER_KEYS)]
        finally:
            client.close()
        served = {queue for text in announced if text for queue in messages.announced(text.decode())[0]}
        return tuple(spec.queue for spec in self._specs if spec.queue not in served)

    def worker_pids(self) -> dict[str, int]:
        """The workers' parent processes by name; empty where the workers are the lab's."""
        return self._supervisor.pids() if self._supervisor is not None else {}

    def close(self, grace_s: float = STOP_GRACE_S) -> None:
        """End everything; stages under way get ``grace_s`` to finish. May be called twice and in any state."""
        if self._supervisor is not None:
            # Killing idle workers harms nobody; asking them nicely takes Celery 2.6 s.
            self._supervisor.stop(grace_s if self._is_busy() else 0.0)
            self._supervisor = None
        if self._broker is not None:
            process = self._broker.process
            self._broker.stop()
            self._broker = None
            if process is not None and self._guardian is not None:
                self._guardian.remove(process.pid)
        if self._guardian is not None:
            self._guardian.stop()
            self._guardian = None
        if self.is_embedded:
            self._record.unlink(missing_ok=True)

    def _is_busy(self) -> bool:
        """Whether a worker is at work, as far as the broker can say."""
        client = connect(self.url, retries=0)
        try:
            return next(iter(client.scan_iter(messages.STARTED_KEYS)), None) is not None
        except (redis.RedisError, OSError):
            return True
        finally:
            client.close()

    @property
    def _record(self) -> Path:
        return self._folder / "lab.json"

    def _start(self) -> None:
        logs = self._folder / "logs"
        self._guardian = Guardian()
        self._broker = EmbeddedBroker(self._folder / "broker", logs / "broker.log")
        self._broker.start()
        assert self._broker.process is not None
        self._guardian.add(self._broker.process.pid)
        self.url = self._broker.url
        environment = {**os.environ, BROKER_VARIABLE: self.url}
        environment.setdefault("OMP_NUM_THREADS", "1")
        self._supervisor = Supervisor(logs, environment, self._guardian, self._broker)
        self._supervisor.start(self._specs)
        self._remember([self._broker.process.pid, *self._supervisor.pids().values()])

    def _remember(self, pids: Sequence[int]) -> None:
        born = {str(pid): psutil.Process(pid).create_time() for pid in pids if psutil.pid_exists(pid)}
        self._record.write_text(json.dumps(born), encoding="utf-8")

    def _end_leftovers(self) -> None:
        """Kill what an earlier run of this folder left, if anything; a pid that is somebody else's by now is spared."""
        try:
            recorded = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        for pid, born in recorded.items():
            try:
                is_ours = abs(psutil.Process(int(pid)).create_time() - born) < 1.0
            except psutil.NoSuchProcess:
                continue
            if is_ours:
                kill_group(int(pid), signal.SIGKILL)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tasks.workers", description=__doc__)
    parser.add_argument("--queues", required=True, help="comma-separated: build, train, board.<kind>")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--name", default="")
    parser.add_argument(
        "--artifact-store", action="append", default=[], help="an allowed place of artifacts; default: any"
    )
    parser.add_argument("--log-level", default="WARNING")
    given = parser.parse_args(arguments)
    queues = [queue.strip() for queue in given.queues.split(",") if queue.strip()]
    return run_worker(
        queues,
        given.concurrency,
        name=given.name,
        artifact_stores=tuple(given.artifact_store),
        log_level=given.log_level,
    )


if __name__ == "__main__":
    sys.exit(main())
