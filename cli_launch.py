"""The service's end of a study that runs in a process of its own: starting it, its metrics, its notifications."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cli_background import REGISTRY_VARIABLE
from orchestrator.leash import Leash
from orchestrator.records import Event
from orchestrator.registry import ENDED_STATES, FAILED, STOPPED, Entry
from orchestrator.service import ELSEWHERE
from tasks.guardian import Guardian, kill_group

if TYPE_CHECKING:
    from orchestrator.metrics import PrometheusSink, SearchMetrics
    from orchestrator.notify import Notifier
    from orchestrator.ports import EventSink
    from orchestrator.service_metrics import ServiceMetrics

LOG_FILE = "orchestrator.log"
_KEPT_SERIES = 20


class StudyProcess:
    """The service's end: a :class:`~orchestrator.service.Child`."""

    def __init__(self, process: subprocess.Popen[bytes], leash: Leash, guardian: Guardian, log: Path) -> None:
        self._process = process
        self._leash = leash
        self._guardian = guardian
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, event: Event) -> None:
        self._leash.send(event)

    def kill(self) -> None:
        if self._process.poll() is None:
            kill_group(self._process.pid, signal.SIGKILL)

    def status(self) -> str:
        code = self._process.poll()
        if code is None:
            return ""
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with exit status {code}; see {self._log}"

    def close(self) -> None:
        self._process.wait()
        self._leash.finish()
        self._guardian.remove(self._process.pid)


class ProcessLauncher:
    """Starts the process of a study. Should this process be killed, the guardian ends those that it started."""

    def __init__(self, guardian: Guardian, registry_url: str) -> None:
        self._guardian = guardian
        self._registry_url = registry_url

    def __call__(self, entry: Entry, token: int, on_event: Callable[[Event], None]) -> StudyProcess:
        log = Path(entry.submission.folder) / "logs" / LOG_FILE
        log.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "cli_background", entry.name, str(token), str(theirs.fileno())]
        environment = {**os.environ, REGISTRY_VARIABLE: self._registry_url}
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._guardian.add(process.pid)
        leash = Leash(ours, on_event, lambda: on_event(Event(name="gone")))
        return StudyProcess(process, leash, self._guardian, log)


class StudyListener:
    """Metrics and notifications of one study; a :class:`~orchestrator.service.Listener`."""

    def __init__(self, name: str, sink: EventSink, notifier: Notifier, on_ended: Callable[[str, str], None]) -> None:
        self._name = name
        self._sink = sink
        self._notifier = notifier
        self._on_ended = on_ended

    def emit(self, event: Event) -> None:
        self._sink.emit(event)
        self._notifier.emit(event)

    def tick(self) -> None:
        self._notifier.tick()

    def ended(self, how: str, text: str) -> None:
        if how in (FAILED, STOPPED):
            self._notifier.end(how, text)
        self._on_ended(self._name, how)


class Series:
    """Which studies have series in ``metrics``: those that run, and the last that ended, so that their last numbers
    are scraped. What another orchestrator has taken over is that one's to tell."""

    def __init__(self, metrics: SearchMetrics, service: ServiceMetrics) -> None:
        self._metrics = metrics
        self._service = service
        self._sinks: dict[str, PrometheusSink] = {}
        self._ended: deque[str] = deque()

    def sink(self, name: str) -> EventSink:
        from orchestrator.metrics import PrometheusSink

        if name in self._ended:
            self._ended.remove(name)
        self._sinks[name] = PrometheusSink(self._metrics, name)
        return self._sinks[name]

    def ended(self, name: str, how: str) -> None:
        self._sinks[name].end()
        self._service.idle(name)
        if how in (*ENDED_STATES, FAILED):
            self._ended.append(name)
        if how == ELSEWHERE:
            self._forget(name)
        while len(self._ended) > _KEPT_SERIES:
            self._forget(self._ended.popleft())

    def _forget(self, name: str) -> None:
        self._metrics.forget(name)
        self._service.forget(name)
        del self._sinks[name]
